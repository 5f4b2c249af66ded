//! Nobody does without credentials what they may not do.

use std::sync::Arc;

use axum::http::StatusCode;
use image::Digest;
use registry::{Access, Action, Credentials, Judgement, Person, Record, Source, Verdict};

use crate::specification::{Client, code, header};

/// `writer` may do everything with `team/…`, `reader` may read it; `other` has a repository of its own.
/// What is written down is kept.
#[derive(Default)]
struct House(std::sync::Mutex<Vec<Record>>);

#[async_trait::async_trait]
impl Access for House {
    async fn judge(&self, credentials: Option<&Credentials>, action: Action, repository: &str) -> Judgement {
        let Some(credentials) = credentials.filter(|c| c.secret == "right") else { return Verdict::Unknown.into() };
        let allowed = match credentials.user.as_str() {
            "writer" => action == Action::LogIn || repository.starts_with("team/"),
            "reader" => action == Action::LogIn || (action == Action::Pull && repository.starts_with("team/")),
            "other" => action == Action::LogIn || repository.starts_with("other/"),
            _ => false,
        };
        let person = Person { name: credentials.user.clone(), ..Person::default() };
        Judgement { verdict: if allowed { Verdict::Allowed } else { Verdict::Denied }, person: Some(person) }
    }

    fn record(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

fn basic(user: &str, secret: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}")))
}

#[tokio::test]
async fn every_route_wants_credentials_and_the_right_ones() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::judged(dir.path(), Arc::new(House::default()));
    let digest = Digest::of(b"data");
    let routes = [
        ("GET", "/v2/".to_owned()),
        ("GET", "/v2/_catalog".to_owned()),
        ("GET", "/v2/team/app/tags/list".to_owned()),
        ("GET", format!("/v2/team/app/referrers/{digest}")),
        ("GET", format!("/v2/team/app/blobs/{digest}")),
        ("DELETE", format!("/v2/team/app/blobs/{digest}")),
        ("POST", "/v2/team/app/blobs/uploads/".to_owned()),
        ("PATCH", "/v2/team/app/blobs/uploads/0123".to_owned()),
        ("PUT", "/v2/team/app/blobs/uploads/0123".to_owned()),
        ("GET", "/v2/team/app/manifests/v1".to_owned()),
        ("PUT", "/v2/team/app/manifests/v1".to_owned()),
        ("DELETE", "/v2/team/app/manifests/v1".to_owned()),
    ];
    for (method, path) in &routes {
        let wrong = basic("writer", "wrong");
        for headers in [&[][..], &[("authorization", wrong.as_str())]] {
            let response = client.send(method, path, headers, b"").await;
            assert_eq!(header(&response, "www-authenticate"), "Basic realm=\"nuee\"", "{method} {path}");
            assert_eq!(code(response).await, (StatusCode::UNAUTHORIZED, "UNAUTHORIZED".to_owned()), "{method} {path}");
        }
    }
    // The control: with the right ones the same requests are judged by what they are.
    let right = basic("writer", "right");
    let (mut denied, mut passed) = (0, 0);
    for (method, path) in &routes {
        let response = client.send(method, path, &[("authorization", right.as_str())], b"").await;
        match response.status() {
            StatusCode::UNAUTHORIZED => panic!("{method} {path}"),
            StatusCode::FORBIDDEN => denied += 1,
            _ => passed += 1,
        }
    }
    assert_eq!((denied, passed), (1, routes.len() - 1), "only the list of all repositories is not the writer's");
}

#[tokio::test]
async fn readers_cannot_write_and_no_blob_is_mounted_from_what_one_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let client = Client::judged(dir.path(), Arc::new(House::default()));
    let send = async |user: &str, method: &str, path: &str, body: &[u8]| {
        client.send(method, path, &[("authorization", basic(user, "right").as_str())], body).await
    };
    let digest = Digest::of(b"secret");
    let upload = format!("/v2/team/app/blobs/uploads/?digest={digest}");
    let response = send("reader", "POST", &upload, b"secret").await;
    assert_eq!(code(response).await, (StatusCode::FORBIDDEN, "DENIED".to_owned()));
    assert_eq!(send("writer", "POST", &upload, b"secret").await.status(), StatusCode::CREATED);
    let blob = format!("/v2/team/app/blobs/{digest}");
    assert_eq!(send("reader", "HEAD", &blob, b"").await.status(), StatusCode::OK);
    assert_eq!(send("other", "HEAD", &blob, b"").await.status(), StatusCode::FORBIDDEN);
    // Who knows a digest does not get the blob by it: the mount becomes an ordinary upload.
    let mount = format!("/v2/other/app/blobs/uploads/?mount={digest}&from=team/app");
    assert_eq!(send("other", "POST", &mount, b"").await.status(), StatusCode::ACCEPTED);
    assert_eq!(
        send("other", "HEAD", &format!("/v2/other/app/blobs/{digest}"), b"").await.status(),
        StatusCode::NOT_FOUND
    );
    let mount = format!("/v2/team/copy/blobs/uploads/?mount={digest}&from=team/app");
    assert_eq!(send("writer", "POST", &mount, b"").await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn every_answer_is_written_down_with_who_asked_and_what_came_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let house = Arc::new(House::default());
    let client = Client::judged(dir.path(), house.clone());
    let (writer, reader) = (basic("writer", "right"), basic("reader", "right"));
    let digest = Digest::of(b"data");
    let upload = format!("/v2/team/app/blobs/uploads/?digest={digest}");
    client.send("POST", &upload, &[("authorization", &writer), ("user-agent", "skopeo/1")], b"data").await;
    client.send("POST", &upload, &[("authorization", &reader)], b"data").await;
    client.send("GET", "/v2/", &[], b"").await;
    client.send("GET", "/v2/nothing/there", &[], b"").await;
    let written = std::mem::take(&mut *house.0.lock().unwrap());
    let facts: Vec<_> = written
        .iter()
        .map(|r| (r.person.as_ref().map_or("", |p| p.name.as_str()), r.action, r.repository.as_str(), r.status))
        .collect();
    assert_eq!(
        facts,
        [
            ("writer", Action::Push, "team/app", 201),
            ("reader", Action::Push, "team/app", 403),
            ("", Action::LogIn, "", 401),
        ]
    );
    assert_eq!((written[0].user_agent.as_str(), written[0].source), ("skopeo/1", None));
    // Who serves the connection says where it came from.
    let address = std::net::IpAddr::from([192, 0, 2, 7]);
    client.send_from(Source(address), "GET", "/v2/").await;
    assert_eq!(house.0.lock().unwrap()[0].source, Some(address));
}
