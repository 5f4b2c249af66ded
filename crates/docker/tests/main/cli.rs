//! The unmodified docker command line against the dialect.

use docker::Endpoint;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::house::House;

#[tokio::test(flavor = "multi_thread")]
async fn version_info_and_images_are_understood() {
    let house = House::open(Endpoint::Machine);
    let version = house.docker(&["version", "--format", "{{.Server.APIVersion}} {{.Server.MinAPIVersion}}"]).await;
    assert_eq!((version.code, version.out.trim()), (0, "1.50 1.24"), "{version:?}");
    assert_eq!(house.docker(&["info"]).await.code, 0);
    let images = house.docker(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).await;
    assert_eq!(images.out.trim(), "busybox:latest");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_gives_output_and_exit_code_and_leaves_nothing_with_rm() {
    let house = House::open(Endpoint::Machine);
    let ran = house.docker(&["run", "--rm", "busybox", "echo", "hello"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "hello\n"), "{ran:?}");
    let ran = house.docker(&["run", "--rm", "busybox", "exit", "7"]).await;
    assert_eq!(ran.code, 7, "{ran:?}");
    let ran = house.docker(&["run", "--rm", "busybox", "err", "oops"]).await;
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", "oops\n"));
    assert_eq!(house.docker(&["ps", "-aq"]).await.out, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn run_carries_standard_input_to_the_process() {
    let house = House::open(Endpoint::Machine);
    let ran = house.docker_with(&["run", "-i", "--rm", "busybox", "cat"], "over and back\n").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "over and back\n"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_gives_127() {
    let house = House::open(Endpoint::Machine);
    let ran = house.docker(&["run", "--rm", "busybox", "nosuch"]).await;
    assert_eq!(ran.code, 127, "{ran:?}");
    assert!(ran.err.contains("executable file not found in $PATH"), "{ran:?}");
    assert_eq!(house.docker(&["ps", "-aq"]).await.out, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_failed_is_told_once_nothing_of_it_is_left() {
    let house = House::open(Endpoint::Machine);
    let mut events = house.kube.subscribe();
    let ran = house.docker(&["run", "--rm", "-p", "8080:80", "busybox", "nosuch"]).await;
    assert_eq!(ran.code, 127, "{ran:?}");
    let gone = std::iter::from_fn(|| events.try_recv().ok())
        .find(|(plural, event)| plural == "containers" && event["type"] == "DELETED");
    let (_, gone) = gone.expect("the container is still there");
    assert_eq!(gone["object"]["metadata"]["annotations"]["cleared"], "yes", "its ports were still held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_lives_its_whole_life() {
    let house = House::open(Endpoint::Machine);
    let ran = house
        .docker(&["run", "-d", "--name", "web", "-e", "A=1", "-v", "data:/data", "-l", "k=v", "busybox", "sleep"])
        .await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let again = house.docker(&["create", "--name", "web", "busybox"]).await;
    assert!(again.err.contains("Conflict. The container name \"/web\" is already in use by container"), "{again:?}");
    let row = house.docker(&["ps", "--filter", "label=k=v", "--format", "{{.Names}} {{.State}} {{.Mounts}}"]).await;
    assert_eq!(row.out.trim(), "web running data");
    let shown = house
        .docker(&[
            "inspect",
            "web",
            "--format",
            "{{.State.Status}} {{.NetworkSettings.IPAddress}} {{index .Config.Env 0}} {{.HostConfig.NetworkMode}}",
        ])
        .await;
    assert_eq!(shown.out.trim(), "running 10.0.0.2 A=1 bridge");
    for (verb, state) in [
        ("pause", "paused"),
        ("unpause", "running"),
        ("restart", "running"),
        ("stop", "exited"),
        ("start", "running"),
        ("kill", "exited"),
    ] {
        let done = house.docker(&[verb, "web"]).await;
        assert_eq!(done.code, 0, "{verb}: {done:?}");
        let shown = house.docker(&["inspect", "web", "--format", "{{.State.Status}}"]).await;
        assert_eq!(shown.out.trim(), state, "after {verb}");
    }
    assert_eq!(house.docker(&["wait", "web"]).await.out.trim(), "137");
    assert_eq!(house.docker(&["rename", "web", "shop"]).await.code, 0);
    let used = house.docker(&["volume", "rm", "data"]).await;
    assert!(used.err.contains("volume is in use"), "{used:?}");
    assert_eq!(house.docker(&["rm", "shop"]).await.code, 0);
    assert_eq!(house.docker(&["volume", "rm", "data"]).await.code, 0);
    let gone = house.docker(&["inspect", "--type", "container", "shop"]).await;
    assert!(gone.err.contains("No such container: shop"), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_commands_and_tells_their_exit_codes() {
    let house = House::open(Endpoint::Machine);
    house.docker(&["run", "-d", "--name", "xx", "busybox", "sleep"]).await;
    let ran = house.docker(&["exec", "xx", "echo", "in", "there"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "in there\n"), "{ran:?}");
    assert_eq!(house.docker(&["exec", "xx", "exit", "5"]).await.code, 5);
    assert_eq!(house.docker(&["exec", "xx", "nosuch"]).await.code, 127);
    let ran = house.docker_with(&["exec", "-i", "xx", "cat"], "typed").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "typed"), "{ran:?}");
    house.docker(&["stop", "xx"]).await;
    let refused = house.docker(&["exec", "xx", "echo"]).await;
    assert!(refused.err.contains("is not running"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_top_stats_diff_and_cp_work() {
    let house = House::open(Endpoint::Machine);
    house.docker(&["run", "--name", "ee", "busybox", "echo", "line"]).await;
    assert_eq!(house.docker(&["logs", "ee"]).await.out, "line\n");
    assert_eq!(house.docker(&["logs", "-t", "ee"]).await.out, "1970-01-01T00:00:01.000000000Z line\n");
    assert_eq!(house.docker(&["logs", "--tail", "0", "ee"]).await.out, "");
    house.docker(&["run", "-d", "--name", "ss", "busybox", "sleep"]).await;
    assert!(house.docker(&["top", "ss"]).await.out.contains("sleep"));
    let stats = house.docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", "ss"]).await;
    assert!(stats.out.starts_with("ss 1MiB / "), "{stats:?}");
    assert_eq!(house.docker(&["diff", "ss"]).await.out, "A /new\n");
    let target = house.socket.with_file_name("motd");
    let copied = house.docker(&["cp", "ss:/etc/motd", target.to_str().unwrap()]).await;
    assert_eq!(copied.code, 0, "{copied:?}");
    assert_eq!(std::fs::read_to_string(&target).unwrap(), "hi\n");
    let missing = house.docker(&["cp", "ss:/nope", "-"]).await;
    assert!(missing.err.contains("Could not find the file /nope in container ss"), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_made_listed_and_removed() {
    let house = House::open(Endpoint::Machine);
    let made = house.docker(&["network", "create", "--subnet", "10.77.0.0/24", "--label", "a=b", "back"]).await;
    assert_eq!(made.code, 0, "{made:?}");
    let names = house.docker(&["network", "ls", "--format", "{{.Name}}/{{.Driver}}"]).await;
    assert_eq!(names.out, "back/bridge\nbridge/bridge\nhost/host\nnone/null\n");
    let shown = house
        .docker(&["network", "inspect", "back", "--format", "{{(index .IPAM.Config 0).Subnet}} {{.Labels.a}}"])
        .await;
    assert_eq!(shown.out.trim(), "10.77.0.0/24 b");
    let twice = house.docker(&["network", "create", "back"]).await;
    assert!(twice.err.contains("network with name back already exists"), "{twice:?}");
    assert!(house.docker(&["network", "rm", "bridge"]).await.err.contains("pre-defined network"));
    house.docker(&["create", "--name", "cc", "--network", "back", "--network-alias", "db", "busybox"]).await;
    let shown = house
        .docker(&[
            "inspect",
            "cc",
            "--format",
            "{{.HostConfig.NetworkMode}} {{.NetworkSettings.Networks.back.Aliases}}",
        ])
        .await;
    assert_eq!(shown.out.trim(), "back [db]");
    assert_eq!(house.docker(&["network", "disconnect", "back", "cc"]).await.code, 0);
    assert_eq!(house.docker(&["network", "rm", "back"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_was_made_has_its_addresses() {
    let house = House::open(Endpoint::Machine);
    let cases: [(&str, &[&str], &str); 2] = [
        ("plain", &[], "10.76.0.0/24 "),
        ("dual", &["--ipv6", "--subnet", "fd00:77::/64"], "10.76.0.0/24 fd00:77::/64 "),
    ];
    for (name, arguments, subnets) in cases {
        let made = house.docker(&[&["network", "create"], arguments, &[name]].concat()).await;
        assert_eq!(made.code, 0, "{made:?}");
        let format = "{{range .IPAM.Config}}{{.Subnet}} {{end}}";
        let shown = house.docker(&["network", "inspect", name, "--format", format]).await;
        assert_eq!(shown.out.trim_end_matches('\n'), subnets, "{shown:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_build_and_push_stream_their_progress() {
    let house = House::open(Endpoint::Machine);
    let pulled = house.docker(&["pull", "pullme"]).await;
    assert!(pulled.out.contains("Status: Downloaded newer image for pullme:latest"), "{pulled:?}");
    let refused = house.docker(&["pull", "nothere"]).await;
    assert!(refused.err.contains("pull access denied for nothere"), "{refused:?}");
    let context = tempfile::tempdir().unwrap();
    std::fs::write(context.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    let path = context.path().to_str().unwrap();
    let built = house.docker(&["build", "-t", "mine", path]).await;
    assert!(built.out.contains("Successfully tagged mine:latest"), "{built:?}");
    let failed = house.docker(&["build", "--build-arg", "FAIL=1", path]).await;
    assert!(failed.code == 3 && failed.err.contains("returned a non-zero code: 3"), "{failed:?}");
    let pushed = house.docker(&["push", "busybox"]).await;
    assert!(pushed.out.contains("latest: digest: sha256:"), "{pushed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_a_run_in_dockers_order() {
    let house = House::open(Endpoint::Machine);
    let mut child =
        house.command(&["events", "--filter", "type=container", "--format", "{{.Action}}"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The listener counts in `info` once it stands.
    while house.docker(&["info", "--format", "{{.NEventsListener}}"]).await.out.trim() != "1" {}
    assert_eq!(house.docker(&["run", "--rm", "busybox", "echo", "x"]).await.code, 0);
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some("destroy") {
        seen.push(lines.next_line().await.unwrap().unwrap());
    }
    assert_eq!(seen, ["create", "attach", "start", "die", "destroy"]);
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_disk_usage_commit_update_and_prune_work() {
    let house = House::open(Endpoint::Machine);
    let fine = async |arguments: &[&str]| {
        let ran = house.docker(arguments).await;
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        ran.out
    };
    assert_eq!(fine(&["volume", "create", "--label", "a=b", "Data_1"]).await, "Data_1\n");
    assert_eq!(fine(&["volume", "ls", "-q", "--filter", "label=a"]).await, "Data_1\n");
    assert_eq!(fine(&["volume", "inspect", "Data_1", "--format", "{{.Driver}} {{.Labels.a}}"]).await, "local b\n");
    fine(&["run", "-d", "--name", "one", "-v", "Data_1:/d", "-v", "/anonymous", "busybox", "sleep"]).await;
    assert_eq!(fine(&["volume", "ls", "-q"]).await.lines().count(), 2);
    fine(&["update", "--memory", "64m", "--memory-swap", "128m", "--restart", "on-failure:2", "one"]).await;
    let shown =
        fine(&["inspect", "one", "--format", "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}"]).await;
    assert_eq!(shown, "67108864 on-failure\n");
    assert!(fine(&["commit", "one", "copy:1"]).await.starts_with("sha256:"));
    assert!(fine(&["system", "df"]).await.contains("Local Volumes"));
    fine(&["system", "df", "-v"]).await;
    let file = house.socket.with_file_name("file");
    std::fs::write(&file, "text").unwrap();
    fine(&["cp", file.to_str().unwrap(), "one:/etc/motd"]).await;
    fine(&["kill", "one"]).await;
    assert!(fine(&["container", "prune", "-f"]).await.contains("Deleted Containers"));
    fine(&["system", "prune", "-f"]).await;
    fine(&["volume", "prune", "-f"]).await;
    assert_eq!(fine(&["volume", "ls", "-q"]).await, "Data_1\n");
    fine(&["volume", "prune", "-f", "-a"]).await;
    assert_eq!(fine(&["volume", "ls", "-q"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_removes_itself_is_waited_for_and_its_stop_ends_the_client() {
    let house = House::open(Endpoint::Machine);
    let mut child = house.command(&["run", "--rm", "--name", "gone", "busybox", "sleep"]).spawn().unwrap();
    while house.docker(&["inspect", "gone", "--format", "{{.State.Running}}"]).await.out.trim() != "true" {}
    assert_eq!(house.docker(&["stop", "gone"]).await.code, 0);
    assert_eq!(child.wait().await.unwrap().code(), Some(143));
    assert_eq!(house.docker(&["ps", "-aq"]).await.out, "");
}
