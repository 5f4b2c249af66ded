//! docker-py, the other client that everybody has; for machines where it is installed.

use docker::Endpoint;
use tokio::process::Command;

use crate::house::House;

const SCRIPT: &str = r#"
import docker, sys
c = docker.DockerClient(base_url="unix://" + sys.argv[1])
assert c.ping()
assert c.containers.run("busybox", ["echo", "hi"], remove=True) == b"hi\n"
try:
    c.containers.run("busybox", ["exit", "3"])
    raise AssertionError("no error")
except docker.errors.ContainerError as e:
    assert e.exit_status == 3
x = c.containers.run("busybox", ["sleep"], detach=True, name="py", labels={"a": "b"}, ports={"80/tcp": 8080}, volumes={"vol": {"bind": "/v", "mode": "rw"}})
x.reload()
assert x.status == "running" and x.attrs["Mounts"][0]["Name"] == "vol", x.attrs
assert x.attrs["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
assert x.exec_run(["echo", "in"]) == (0, b"in\n")
assert x.exec_run(["exit", "9"]).exit_code == 9
assert [y.name for y in c.containers.list(filters={"label": "a=b"})] == ["py"]
assert x.stats(stream=False)["memory_stats"]["usage"] == 1048576
assert x.top()["Titles"] == ["PID", "CMD"]
bits, stat = x.get_archive("/etc/motd")
assert stat["name"] == "motd" and len(b"".join(bits)) > 0
assert x.put_archive("/", b"".join(x.get_archive("/etc/motd")[0]))
x.pause(); x.unpause(); x.restart(); x.rename("pz"); x.update(mem_limit="64m", memswap_limit="128m")
x.reload(); assert x.attrs["HostConfig"]["Memory"] == 64 << 20
n = c.networks.create("nn", driver="bridge"); n.reload(); n.remove()
x.stop(); assert x.wait()["StatusCode"] == 143
x.remove(v=True)
c.volumes.get("vol").remove()
try:
    c.containers.get("pz"); raise AssertionError("found")
except docker.errors.NotFound: pass
assert c.images.get("busybox").tags == ["busybox:latest"]
assert c.api.create_container("busybox", ["cat"], stdin_open=True)["Id"]
print("fine")
"#;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs docker-py"]
async fn docker_py_works() {
    let house = House::open(Endpoint::Machine);
    let output = Command::new("python3").args(["-c", SCRIPT]).arg(&house.socket).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
