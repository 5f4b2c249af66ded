//! What the conformance suite of the specification asks for, and where distribution itself falls short: sha512, lists in
//! pages, chunks out of order, ranges that cannot be, digests that are none, referrers of what is not there.

use axum::http::StatusCode;
use image::Digest;
use image::digest::{Algorithm, Hasher};
use image::manifest::OCI_MANIFEST;

use crate::helpers::{config, layers};
use crate::specification::{Client, body, code, header, manifest};

fn sha512(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(Algorithm::Sha512);
    hasher.update(bytes);
    hasher.finish()
}

async fn begin(client: &Client, name: &str) -> String {
    let response = client.send("POST", &format!("/v2/{name}/blobs/uploads/"), &[], b"").await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    header(&response, "location").to_owned()
}

#[tokio::test]
async fn blobs_and_manifests_go_by_sha512_too() {
    let dir = tempfile::tempdir().unwrap();
    let (client, store) = Client::new(dir.path());
    let layer = layers(1, 800).remove(0);
    let config = config(std::slice::from_ref(&layer)).into_bytes();
    for bytes in [&layer, &config] {
        let place = begin(&client, "app").await;
        let digest = sha512(bytes);
        let response = client.send("PUT", &format!("{place}?digest={digest}"), &[], bytes).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(header(&response, "docker-content-digest"), digest.to_string());
        let response = client.send("GET", &format!("/v2/app/blobs/{digest}"), &[], b"").await;
        assert_eq!(body(response).await, *bytes);
    }
    let mut text: serde_json::Value = serde_json::from_slice(&manifest(&config, &layer, None)).unwrap();
    text["config"]["digest"] = sha512(&config).to_string().into();
    text["layers"][0]["digest"] = sha512(&layer).to_string().into();
    let text = text.to_string().into_bytes();
    let path = format!("/v2/app/manifests/{}", sha512(&text));
    let kind = [("content-type", OCI_MANIFEST)];
    let response = client.send("PUT", &path, &kind, &text).await;
    assert_eq!(
        (response.status(), header(&response, "docker-content-digest")),
        (StatusCode::CREATED, &*sha512(&text).to_string())
    );
    store.collect_garbage().await.unwrap();
    assert_eq!(body(client.send("GET", &path, &[], b"").await).await, text);
    let wrong = format!("/v2/app/manifests/{}", sha512(b"another"));
    let response = client.send("PUT", &wrong, &kind, &text).await;
    assert_eq!(code(response).await, (StatusCode::BAD_REQUEST, "DIGEST_INVALID".to_owned()));
    // Right by one function, wrong by the other.
    let place = begin(&client, "app").await;
    let mixed = format!("{place}?digest=sha512:{}", Digest::of(&layer).hex());
    assert_eq!(client.send("PUT", &mixed, &[], &layer).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn tags_come_in_pages_sorted() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _) = Client::new(dir.path());
    let layer = layers(1, 800).remove(0);
    let config = config(std::slice::from_ref(&layer)).into_bytes();
    client.upload("app", &config).await;
    client.upload("app", &layer).await;
    let text = manifest(&config, &layer, None);
    for tag in ["b", "A", "c", "_d"] {
        let path = format!("/v2/app/manifests/{tag}");
        assert_eq!(
            client.send("PUT", &path, &[("content-type", OCI_MANIFEST)], &text).await.status(),
            StatusCode::CREATED
        );
    }
    let page = async |query: &str| {
        let response = client.send("GET", &format!("/v2/app/tags/list{query}"), &[], b"").await;
        assert_eq!(response.status(), StatusCode::OK, "{query}");
        let link = header(&response, "link").to_owned();
        let list: serde_json::Value = serde_json::from_slice(&body(response).await).unwrap();
        assert_eq!(list["name"], "app");
        (serde_json::from_value::<Vec<String>>(list["tags"].clone()).unwrap(), link)
    };
    assert_eq!(page("").await, (vec!["A".into(), "_d".into(), "b".into(), "c".into()], String::new()));
    let (first, link) = page("?n=3").await;
    assert_eq!((first.len(), link.as_str()), (3, "</v2/app/tags/list?n=3&last=b>; rel=\"next\""));
    assert_eq!(page("?n=3&last=b").await, (vec!["c".into()], String::new()));
    assert_eq!(page("?n=0").await.0, Vec::<String>::new());
    assert_eq!(page("?n=9").await.0.len(), 4);
    // A tag that is none of ours still has a place in the order.
    assert_eq!(page("?last=a").await.0, ["b", "c"]);
    let response = client.send("GET", "/v2/app/tags/list?n=-1", &[], b"").await;
    assert!(response.status().is_client_error());
}

#[tokio::test]
async fn chunks_out_of_order_leave_the_upload_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _) = Client::new(dir.path());
    let place = begin(&client, "app").await;
    let patch = async |range: &str, bytes: &[u8]| {
        let response = client.send("PATCH", &place, &[("content-range", range)], bytes).await;
        (response.status(), header(&response, "range").to_owned())
    };
    // The first must begin at the beginning.
    assert_eq!(patch("5-9", b"world").await.0, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(patch("0-4", b"hello").await, (StatusCode::ACCEPTED, "0-4".to_owned()));
    // Sent twice, with a gap, or over the end: the answer says where to go on.
    for range in ["0-4", "7-11", "3-7"] {
        assert_eq!(patch(range, b"xxxxx").await, (StatusCode::RANGE_NOT_SATISFIABLE, "0-4".to_owned()), "{range}");
    }
    // More or less than the range says, or no range at all.
    assert_eq!(patch("5-6", b"too long").await.0, StatusCode::BAD_REQUEST);
    for malformed in ["5", "a-b", "9-5", "-5"] {
        assert!(patch(malformed, b"x").await.0.is_client_error(), "{malformed}");
    }
    assert_eq!(patch("5-9", b"world").await, (StatusCode::ACCEPTED, "0-9".to_owned()));
    // A last chunk with the end of the upload.
    let digest = Digest::of(b"helloworld!");
    let response = client.send("PUT", &format!("{place}?digest={digest}"), &[("content-range", "10-10")], b"!").await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let response = client.send("GET", &place, &[], b"").await;
    assert_eq!(code(response).await, (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn an_upload_ends_by_its_digest_only() {
    let dir = tempfile::tempdir().unwrap();
    let (client, _) = Client::new(dir.path());
    for wrong in ["", "?digest=", "?digest=sha256:zz", "?digest=md5:d41d8cd98f00b204e9800998ecf8427e", "?digest=x"] {
        let place = begin(&client, "app").await;
        let response = client.send("PUT", &format!("{place}{wrong}"), &[], b"data").await;
        assert_eq!(code(response).await, (StatusCode::BAD_REQUEST, "DIGEST_INVALID".to_owned()), "{wrong}");
    }
    let place = begin(&client, "app").await;
    assert_eq!(client.send("DELETE", &place, &[], b"").await.status(), StatusCode::NO_CONTENT);
    assert_eq!(client.send("DELETE", &place, &[], b"").await.status(), StatusCode::NOT_FOUND);
    let upper = Digest::of(b"data").to_string().to_uppercase().replace("SHA256", "sha256");
    let response = client.send("GET", &format!("/v2/app/blobs/{upper}"), &[], b"").await;
    assert_eq!(code(response).await, (StatusCode::BAD_REQUEST, "DIGEST_INVALID".to_owned()));
    client.upload("app", b"data").await;
    let path = format!("/v2/app/blobs/{}", Digest::of(b"data"));
    let response = client.send("GET", &path, &[("range", "bytes=9-12")], b"").await;
    assert_eq!(
        (response.status(), header(&response, "content-range")),
        (StatusCode::RANGE_NOT_SATISFIABLE, "bytes */4")
    );
}

#[tokio::test]
async fn referrers_outlive_and_precede_their_subject() {
    let dir = tempfile::tempdir().unwrap();
    let (client, store) = Client::new(dir.path());
    let layer = layers(1, 800).remove(0);
    let config = config(std::slice::from_ref(&layer)).into_bytes();
    client.upload("app", &config).await;
    client.upload("app", &layer).await;
    let kind = [("content-type", OCI_MANIFEST)];
    let subject = manifest(&config, &layer, None);
    let (about, referrer) = (Digest::of(&subject), manifest(&config, &layer, Some(&Digest::of(&subject))));
    let list = async |query: &str| {
        let response = client.send("GET", &format!("/v2/app/referrers/{about}{query}"), &[], b"").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(header(&response, "content-type"), "application/vnd.oci.image.index.v1+json");
        let filtered = header(&response, "oci-filters-applied").to_owned();
        let index: serde_json::Value = serde_json::from_slice(&body(response).await).unwrap();
        (index["manifests"].as_array().unwrap().clone(), filtered)
    };
    assert_eq!(list("").await.0, Vec::<serde_json::Value>::new(), "of what is not there: an empty list, no error");
    // Before the subject itself.
    let response = client.send("PUT", &format!("/v2/app/manifests/{}", Digest::of(&referrer)), &kind, &referrer).await;
    assert_eq!((response.status(), header(&response, "oci-subject")), (StatusCode::CREATED, &*about.to_string()));
    let (found, filtered) = list("").await;
    assert_eq!((found.len(), filtered.as_str()), (1, ""));
    assert_eq!(found[0]["artifactType"], "application/example");
    assert_eq!(client.send("PUT", "/v2/app/manifests/v1", &kind, &subject).await.status(), StatusCode::CREATED);
    assert_eq!(list("?artifactType=application/example").await.0.len(), 1);
    assert_eq!(list("?artifactType=other").await, (Vec::new(), "artifactType".to_owned()));
    // Without tag, and with its subject gone, it is still there until it is deleted.
    assert_eq!(
        client.send("DELETE", &format!("/v2/app/manifests/{about}"), &[], b"").await.status(),
        StatusCode::ACCEPTED
    );
    store.collect_garbage().await.unwrap();
    assert_eq!(list("").await.0.len(), 1);
    let path = format!("/v2/app/manifests/{}", Digest::of(&referrer));
    assert_eq!(client.send("DELETE", &path, &[], b"").await.status(), StatusCode::ACCEPTED);
    assert_eq!(list("").await.0.len(), 0);
    let response = client.send("GET", "/v2/app/referrers/sha256:12", &[], b"").await;
    assert_eq!(code(response).await, (StatusCode::BAD_REQUEST, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn an_upload_whose_connection_breaks_goes_on_where_it_was_even_after_a_restart() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
    let half = data.len() / 2;
    let server = crate::helpers::serve(dir.path()).await;
    let location = begin(&Client::over(server.store.clone()), "team/app").await;
    // A chunk that promises everything, brings half of it, and is cut off.
    let mut stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", data.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&data[..half]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ended = stream.read_to_end(&mut answer).await;
    drop(stream);
    drop(server);
    // Another registry over the same directory, as after a restart: the upload says how far it came.
    let (client, store) = Client::new(dir.path());
    let status = client.send("GET", &location, &[], b"").await;
    assert_eq!(status.status(), StatusCode::NO_CONTENT);
    assert_eq!(header(&status, "range"), format!("0-{}", half - 1));
    let range = format!("{half}-{}", data.len() - 1);
    let rest = client.send("PATCH", &location, &[("content-range", &range)], &data[half..]).await;
    assert_eq!(rest.status(), StatusCode::ACCEPTED);
    let digest = Digest::of(&data);
    let done = client.send("PUT", &format!("{location}?digest={digest}"), &[], b"").await;
    assert_eq!(done.status(), StatusCode::CREATED);
    assert_eq!(store.blobs().size(&digest), Some(data.len() as u64));
}
