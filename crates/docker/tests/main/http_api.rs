//! Raw HTTP: what clients other than the command line see, and what must be refused.

use docker::Endpoint;

use crate::house::House;

#[tokio::test]
async fn unknown_paths_versions_and_bodies_get_dockers_answers() {
    let house = House::open(Endpoint::Machine);
    let check = async |method: &str, path: &str, body: &str, status: u16, text: &str| {
        let (code, answer) = house.http(method, path, body).await;
        assert_eq!(code, status, "{method} {path}: {answer}");
        assert!(answer.contains(text), "{method} {path}: {answer}");
    };
    check("GET", "/nope", "", 404, r#"{"message":"page not found"}"#).await;
    check("PATCH", "/containers/json", "", 404, "page not found").await;
    check("GET", "/v1.23/info", "", 400, "client version 1.23 is too old").await;
    check("GET", "/v1.99/info", "", 400, "client version 1.99 is too new").await;
    check("GET", "/v1.24/_ping", "", 200, "OK").await;
    check("POST", "/containers/create", "{\"Image\":", 400, "invalid JSON: unexpected EOF").await;
    check("POST", "/containers/create", "", 400, "config cannot be empty").await;
    check("POST", "/containers/create", r#"{"Image":"nothere"}"#, 404, "No such image: nothere:latest").await;
    check("POST", "/containers/create?name=-", r#"{"Image":"busybox"}"#, 400, "Invalid container name (-)").await;
    check("GET", "/containers/nope/json", "", 404, "No such container: nope").await;
    check("GET", "/containers/json?filters=%7B%22x%22:%5B%22y%22%5D%7D", "", 400, "invalid filter 'x'").await;
    check("GET", "/services", "", 503, "not a swarm manager").await;
    check("POST", "/swarm/join", "{}", 400, "at least 1 remote address").await;
    let join = |token: &str| format!(r#"{{"RemoteAddrs":["10.0.0.1:2377"],"JoinToken":"{token}"}}"#);
    check("POST", "/swarm/join", &join("x"), 400, "invalid join token").await;
    let (authority, secret) = ("0".repeat(50), "0123456789abcdefghijklmno");
    let command = format!("nuee join --token 012345.9abcdefghijklmno.{} 10.0.0.1:6443", "0".repeat(64));
    check("POST", "/swarm/join", &join(&format!("SWMTKN-1-{authority}-{secret}")), 501, &command).await;
    check("GET", "/volumes/nope", "", 404, "get nope: no such volume").await;
    check("GET", "/networks/nope", "", 404, "network nope not found").await;
    let made = r#"{"Name":"n","IPAM":{"Config":[{"Subnet":"10.66.2.0/24","AuxiliaryAddresses":{"r":"10.66.3.2"}}]}}"#;
    let outside = "auxiliary address: (r:10.66.3.2) must belong to the master pool: 10.66.2.0/24";
    check("POST", "/networks/create", made, 403, outside).await;
    let many: Vec<String> = (0..=api::network::AUXILIARY_MAX).map(|at| format!(r#""k{at}":"10.66.2.9""#)).collect();
    let many = format!(
        r#"{{"Name":"n","IPAM":{{"Config":[{{"Subnet":"10.66.2.0/24","AuxiliaryAddresses":{{{}}}}}]}}}}"#,
        many.join(",")
    );
    check("POST", "/networks/create", &many, 400, "has more than 256 auxiliary addresses").await;
    let inhibit = r#"{"Name":"n","Options":{"com.docker.network.bridge.inhibit_ipv4":"true"}}"#;
    check("POST", "/networks/create", inhibit, 501, "is not available").await;
}

#[tokio::test]
async fn starting_twice_is_304_and_prefixes_resolve_unless_ambiguous() {
    let house = House::open(Endpoint::Machine);
    let (code, answer) =
        house.http("POST", "/containers/create?name=one", r#"{"Image":"busybox","Cmd":"sleep"}"#).await;
    assert_eq!(code, 201, "{answer}");
    let id = answer.split("\"Id\":\"").nth(1).unwrap()[..64].to_owned();
    assert_eq!(house.http("POST", &format!("/containers/{}/start", &id[..12]), "").await.0, 204);
    assert_eq!(house.http("POST", "/containers/one/start", "").await.0, 304);
    assert_eq!(house.http("DELETE", "/containers/one", "").await.0, 409);
    assert_eq!(house.http("POST", "/containers/one/stop", "").await.0, 204);
    assert_eq!(house.http("POST", "/containers/one/stop", "").await.0, 304);
    assert_eq!(house.http("POST", "/containers/one/kill", "").await.0, 409);
    for at in 0..17 {
        house.http("POST", &format!("/containers/create?name=many{at}"), r#"{"Image":"busybox"}"#).await;
    }
    // Among eighteen ids, two begin with the same digit.
    let mut ambiguous = false;
    for digit in "0123456789abcdef".chars() {
        let (code, answer) = house.http("GET", &format!("/containers/{digit}/json"), "").await;
        ambiguous |= code == 400 && answer.contains("multiple IDs found with provided prefix");
    }
    assert!(ambiguous);
    assert_eq!(house.http("DELETE", "/containers/one?v=1&force=1", "").await.0, 204);
}

#[tokio::test]
async fn a_tenant_gets_403_for_each_way_to_the_machine_and_no_body_trick_changes_it() {
    let house = House::open(Endpoint::Tenant);
    let refused = [
        r#"{"Privileged":true}"#,
        r#"{"Binds":["/:/host"]}"#,
        r#"{"Mounts":[{"Type":"bind","Source":"/","Target":"/host"}]}"#,
        r#"{"Mounts":[{"Type":"volume","Source":"vv","Target":"/h","VolumeOptions":{"DriverConfig":{"Options":{"type":"none","o":"bind","device":"/"}}}}]}"#,
        r#"{"PidMode":"host"}"#,
        r#"{"NetworkMode":"host"}"#,
        r#"{"IpcMode":"host"}"#,
        r#"{"UTSMode":"host"}"#,
        r#"{"UsernsMode":"host"}"#,
        r#"{"CgroupnsMode":"host"}"#,
        r#"{"Devices":[{"PathOnHost":"/dev/sda"}]}"#,
        r#"{"DeviceCgroupRules":["a *:* rwm"]}"#,
        r#"{"CapAdd":["SYS_ADMIN"]}"#,
        r#"{"CapAdd":"ALL"}"#,
        r#"{"SecurityOpt":["seccomp=unconfined"]}"#,
        r#"{"SecurityOpt":["systempaths=unconfined"]}"#,
        r#"{"MaskedPaths":[]}"#,
        r#"{"CgroupParent":"/"}"#,
        r#"{"OomScoreAdj":-999}"#,
        r#"{"Sysctls":{"kernel.core_pattern":"|/x"}}"#,
    ];
    for host in refused {
        let body = format!(r#"{{"Image":"busybox","HostConfig":{host}}}"#);
        let (code, answer) = house.http("POST", "/containers/create", &body).await;
        assert_eq!(code, 403, "{host}: {answer}");
    }
    let duplicate = r#"{"Image":"busybox","HostConfig":{"Privileged":false},"HostConfig":{"Privileged":true}}"#;
    assert_eq!(house.http("POST", "/containers/create", duplicate).await.0, 400);
    let huge = format!(r#"{{"Image":"busybox","X":"{}"}}"#, "x".repeat(5 << 20));
    assert_eq!(house.http("POST", "/containers/create", &huge).await.0, 413);
    let deep = format!(r#"{{"Image":"busybox","X":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(house.http("POST", "/containers/create", &deep).await.0, 400);
    let volume = r#"{"Name":"vv","DriverOpts":{"type":"none","o":"bind","device":"/"}}"#;
    assert_eq!(house.http("POST", "/volumes/create", volume).await.0, 403);
    assert_eq!(house.http("DELETE", "/images/busybox", "").await.0, 403);
    let (code, answer) =
        house.http("POST", "/containers/create?name=fine", r#"{"Image":"busybox","Cmd":["sleep"]}"#).await;
    assert_eq!(code, 201, "{answer}");
    assert_eq!(house.http("POST", "/containers/fine/start", "").await.0, 204);
    let exec = r#"{"Cmd":["echo"],"Privileged":true}"#;
    assert_eq!(house.http("POST", "/containers/fine/exec", exec).await.0, 403);
    assert!(house.kube.get("volumes", "vv").is_none());
}
