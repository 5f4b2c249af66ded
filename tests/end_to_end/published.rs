//! Ports that are published on IPv6 lead to containers that have none, whoever ends meanwhile.

use anyhow::{Result, ensure};
use testkit::Nuee;

use crate::with_images;

const PAGE: &str = "hello from a cloud\n";
/// Listens on an IPv6 port until its input ends, and says so when it does.
const HOLD: &str = "import socket, sys\ns = socket.socket(socket.AF_INET6)\ns.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)\n\
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n\
                    s.bind(('::', int(sys.argv[1])))\ns.listen()\nprint('listens', flush=True)\nsys.stdin.read()\n";
/// Answers one datagram with itself.
const ANSWER: &str = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(60)\ns.bind(('', 5353))\n\
                      s.sendto(*s.recvfrom(100))\n";
/// Asks by UDP until an answer comes.
const ASK: &str = "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.settimeout(0.5)\n\
                   for _ in range(60):\n  try:\n    s.sendto(b'ping', ('::1', 5353))\n    print(s.recv(100).decode())\n    break\n  \
                   except OSError: pass\n";

/// A port without groups, and a group that lets nobody ask for a page.
const GUARDED: &str = r#"
apiVersion: nuee.dev/v1
kind: Network
metadata: {name: net}
spec: {name: net, subnet: 10.97.0.0/24}
---
apiVersion: nuee.dev/v1
kind: SecurityGroup
metadata: {name: shut}
spec: {rules: [{protocol: tcp, portRangeMin: 22}]}
---
apiVersion: nuee.dev/v1
kind: Port
metadata: {name: front}
spec: {network: net}
"#;

/// A process that has an IPv6 port of the machine.
struct Holder(std::process::Child);

impl Holder {
    fn of(nuee: &Nuee, port: &str) -> Result<Self> {
        let mut command = nuee.space().command("python3");
        command.args(["-c", HOLD, port]).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        }
        let holder = Self(child);
        assert_eq!(line, "listens\n");
        Ok(holder)
    }

    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        self.0.wait()?;
        Ok(())
    }
}

fn run(nuee: &Nuee, name: &str, more: &[&str]) -> Result<()> {
    nuee.docker(&[&["run", "-d", "--name", name], more].concat())?.success().map(drop)
}

fn refused(nuee: &Nuee, url: &str) -> Result<()> {
    nuee.run("curl", &["-sg", "-m", "20", url])?.failure(7, "").map(drop)
}

fn ports(nuee: &Nuee, name: &str) -> Result<String> {
    Ok(nuee.docker(&["port", name])?.success()?.stdout)
}

/// The bridge's address of a container.
fn address(nuee: &Nuee, name: &str) -> Result<String> {
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    Ok(nuee.docker(&["inspect", "-f", format, name])?.success()?.text().to_owned())
}

#[test]
fn a_port_answers_on_both_families_through_the_daemons_death_and_goes_with_its_container() -> Result<()> {
    let nuee = with_images()?;
    let (four, six) = ("http://127.0.0.1:8080/", "http://[::1]:8080/");
    run(&nuee, "web", &["-p", "8080:80", "web:test"])?;
    for _ in 0..2 {
        assert_eq!((nuee.fetch(four)?.as_str(), nuee.fetch(six)?.as_str()), (PAGE, PAGE));
        assert_eq!(ports(&nuee, "web")?, "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n");
        nuee.docker(&["restart", "-t", "0", "web"])?.success()?;
    }
    let shown = nuee.docker(&["ps", "--format", "{{.Ports}}"])?.success()?;
    ensure!(shown.text().contains("0.0.0.0:8080->80/tcp") && shown.text().contains("::"), "{}", shown.text());
    nuee.kill_daemon()?;
    assert_eq!((nuee.fetch(four)?.as_str(), nuee.fetch(six)?.as_str()), (PAGE, PAGE));
    nuee.up()?;
    assert_eq!((nuee.fetch(four)?.as_str(), nuee.fetch(six)?.as_str()), (PAGE, PAGE));
    nuee.docker(&["run", "-d", "-p", "[::]:8080:80", "web:test"])?
        .failure(125, "Bind for :::8080 failed: port is already allocated")?;

    // Off its network nothing leads to it, nor to who gets its address; back on it all does.
    nuee.docker(&["network", "disconnect", "bridge", "web"])?.success()?;
    nuee.eventually("the port is gone", || Ok(refused(&nuee, six).is_ok()))?;
    // Whoever else has the port meanwhile keeps it for as long as he wants it.
    let holder = Holder::of(&nuee, "8080")?;
    nuee.docker(&["network", "connect", "bridge", "web"])?.success()?;
    nuee.eventually("it is on its network", || Ok(!address(&nuee, "web")?.is_empty()))?;
    assert_eq!(ports(&nuee, "web")?, "");
    refused(&nuee, four)?;
    holder.end()?;
    nuee.eventually("the port is back", || Ok(nuee.fetch(six).is_ok_and(|page| page == PAGE)))?;
    assert_eq!(nuee.fetch(four)?, PAGE);
    nuee.eventually("it is told", || Ok(ports(&nuee, "web")? == "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"))?;

    // Whoever else holds the port on IPv6 has it; the start is undone on IPv4 as well.
    nuee.docker(&["rm", "-f", "web"])?.success()?;
    refused(&nuee, six)?;
    let holder = Holder::of(&nuee, "8082")?;
    nuee.docker(&["run", "-d", "--name", "late", "-p", "8082:80", "web:test"])?
        .failure(125, "Bind for :::8082 failed: port is already allocated")?;
    run(&nuee, "early", &["-p", "0.0.0.0:8082:80", "web:test"])?;
    assert_eq!(nuee.fetch("http://127.0.0.1:8082/")?, PAGE);
    holder.end()?;
    nuee.finish()
}

#[test]
fn addresses_ranges_datagrams_and_machines_without_ipv6_are_as_with_dockerd() -> Result<()> {
    let nuee = with_images()?;
    run(&nuee, "near", &["-p", "[::1]:8081:80", "web:test"])?;
    assert_eq!(ports(&nuee, "near")?, "80/tcp -> [::1]:8081\n");
    assert_eq!(nuee.fetch("http://[::1]:8081/")?, PAGE);
    refused(&nuee, "http://127.0.0.1:8081/")?;
    refused(&nuee, &format!("http://{}:8081/", address(&nuee, "near")?))?;
    // The same number for both families, chosen or out of a range of which another has the first.
    run(&nuee, "any", &["-p", "80", "-p", "8081-8083:81", "web:test"])?;
    let shown = ports(&nuee, "any")?;
    let of = |family: &str, port: &str| {
        let start = format!("{port}/tcp -> {family}:");
        shown.lines().find_map(|line| line.strip_prefix(&start)).map(str::to_owned)
    };
    ensure!(of("[::]", "80").is_some() && of("[::]", "80") == of("0.0.0.0", "80"), "{shown}");
    ensure!(of("[::]", "81").as_deref() == Some("8082") && of("0.0.0.0", "81").as_deref() == Some("8082"), "{shown}");
    let chosen = of("[::]", "80").unwrap_or_default();
    assert_eq!(nuee.fetch(&format!("http://[::1]:{chosen}/"))?, PAGE);
    run(&nuee, "echo", &["-p", "5353:5353/udp", "busybox:test", "sleep", "6000"])?;
    let pid = nuee.docker(&["inspect", "-f", "{{.State.Pid}}", "echo"])?.success()?;
    let mut server = nuee.space().command("nsenter");
    let mut server = server.args(["-n", "-t", pid.text(), "python3", "-c", ANSWER]).spawn()?;
    assert_eq!(nuee.run("python3", &["-c", ASK])?.success()?.text(), "ping");
    ensure!(server.wait()?.success(), "nothing came to the container");

    nuee.run(
        "sh",
        &["-c", "for each in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$each/disable_ipv6; done"],
    )?
    .success()?;
    run(&nuee, "old", &["-p", "8084:80", "-p", "[::]:8085:80", "web:test"])?;
    assert_eq!(ports(&nuee, "old")?, "80/tcp -> 0.0.0.0:8084\n");
    assert_eq!(nuee.fetch("http://127.0.0.1:8084/")?, PAGE);
    nuee.finish()
}

#[test]
fn nothing_leads_past_security_groups_that_come_to_a_container_that_runs() -> Result<()> {
    let nuee = with_images()?;
    nuee.apply(GUARDED)?.success()?;
    let patch = |groups: &str| {
        let change = format!("{{\"spec\": {{\"securityGroups\": [{groups}]}}}}");
        nuee.kubectl(&["patch", "port", "front", "--type=merge", "-p", &change])?.success().map(drop)
    };
    let six = "http://[::1]:8080/";
    run(&nuee, "web", &["--network", "net", "--label", "nuee.dev/port=front", "-p", "8080:80", "web:test"])?;
    assert_eq!(nuee.fetch(six)?, PAGE);
    patch("\"shut\"")?;
    nuee.eventually("nobody carries", || Ok(refused(&nuee, six).is_ok()))?;
    let four = "80/tcp -> 0.0.0.0:8080\n";
    nuee.eventually("it is told so", || Ok(ports(&nuee, "web")? == four))?;
    nuee.kill_daemon()?;
    nuee.up()?;
    nuee.docker(&["restart", "-t", "0", "web"])?.success()?;
    refused(&nuee, six)?;
    assert_eq!(ports(&nuee, "web")?, four);
    // Without groups again it is carried from the next start on.
    patch("")?;
    nuee.eventually("it is carried from the next start on", || {
        nuee.docker(&["restart", "-t", "0", "web"])?.success()?;
        Ok(ports(&nuee, "web")? == format!("{four}80/tcp -> [::]:8080\n"))
    })?;
    assert_eq!(nuee.fetch(six)?, PAGE);
    nuee.finish()
}
