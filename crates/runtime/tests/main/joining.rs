//! Processes that the shim starts in a running container by itself, beside those that the OCI runtime starts there.

use node::{ExecRequest, TerminalSize};
use oci_spec::runtime::{LinuxPersonality, LinuxPersonalityDomain, PosixRlimitBuilder, PosixRlimitType, Spec};
use runtime::Error;

use crate::place::{Place, collect, run};

/// What a process can see of itself.
const LOOK: &str = "grep -E '^(Umask|Uid|Gid|Groups|Cap|NoNew|Seccomp|Sig(Blk|Ign|Cgt)|NSpid)' /proc/self/status; \
     id; pwd; env | sort; umask; ulimit -a;\
     cut -d: -f2- /proc/self/cgroup | sort; for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done; \
     ls /proc/self/fd; stat -L -c %u:%F /proc/self/fd/1 /proc/self/fd/2; stty size 2>/dev/null";

fn change(spec: &mut Spec, oci_runtime: bool, sealed: bool) {
    let mut process = spec.process().clone().unwrap();
    process.set_no_new_privileges(Some(sealed));
    process.set_oom_score_adj(Some(300));
    let limit = |kind, soft, hard| PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build().unwrap();
    process.set_rlimits(Some(vec![
        limit(PosixRlimitType::RlimitNofile, 90_u64, 100_u64),
        limit(PosixRlimitType::RlimitFsize, 1 << 20, 1 << 20),
        limit(PosixRlimitType::RlimitCore, 0, u64::MAX),
    ]));
    spec.set_process(Some(process));
    if oci_runtime {
        leave_to_oci_runtime(spec);
    }
}

/// Asks for what it has anyway, by a word that is the OCI runtime's to follow.
pub fn leave_to_oci_runtime(spec: &mut Spec) {
    let mut personality = LinuxPersonality::default();
    personality.set_domain(LinuxPersonalityDomain::PerLinux);
    spec.linux_mut().as_mut().unwrap().set_personality(Some(personality));
}

fn look() -> ExecRequest {
    let command = ["/bin/sh", "-c", LOOK].map(str::to_owned).to_vec();
    ExecRequest { command, ..ExecRequest::default() }
}

/// A name, a number without one, and what `web` is in anyway.
fn groups() -> Vec<String> {
    ["root", "777", "44"].map(str::to_owned).to_vec()
}

/// Who started a process: those of the shim lead their sessions, those of the OCI runtime do not.
async fn leads_its_session(place: &Place, id: &str) -> bool {
    let (code, text) = place.exec(id, &["sh", "-c", "echo $$; cut -d' ' -f6 /proc/$$/stat"]).await;
    assert_eq!(code, 0, "{text}");
    let mut lines = text.lines();
    lines.next() == lines.next()
}

#[tokio::test]
async fn a_process_of_the_shim_is_what_the_oci_runtime_would_have_made() {
    let place = Place::new();
    for (sealed, ours, theirs) in [(false, "ours", "theirs"), (true, "ours-sealed", "theirs-sealed")] {
        for (id, oci_runtime) in [(ours, false), (theirs, true)] {
            let mut wanted = run(&["/bin/sleep", "1000"]);
            wanted.change = Box::new(move |spec| change(spec, oci_runtime, sealed));
            place.start(id, wanted).await;
            assert_eq!(leads_its_session(&place, id).await, !oci_runtime, "{id}");
            // Not at what the daemon has.
            assert_eq!(place.exec(id, &["cat", "/proc/self/oom_score_adj"]).await, (0, "300\n".to_owned()));
        }
        let size = Some(TerminalSize { columns: 90, rows: 20 });
        let requests = [
            look(),
            ExecRequest { user: "web".to_owned(), ..look() },
            ExecRequest { user: "4711:4712".to_owned(), ..look() },
            ExecRequest { user: "web".to_owned(), groups: groups(), ..look() },
            ExecRequest { user: "4711".to_owned(), groups: groups(), ..look() },
            ExecRequest { privileged: true, ..look() },
            ExecRequest { privileged: true, user: "web".to_owned(), ..look() },
            ExecRequest { stdin: true, working_directory: "/tmp".to_owned(), ..look() },
            ExecRequest { environment: vec!["PATH=/bin".to_owned(), "A=b".to_owned()], ..look() },
            ExecRequest { terminal: true, size, ..look() },
            ExecRequest { terminal: true, user: "web".to_owned(), size, ..look() },
        ];
        for request in requests {
            let mut said = Vec::new();
            for id in [ours, theirs] {
                let session = place.runtime.exec(id, request.clone()).await.unwrap();
                let (code, text) = collect(session).await;
                assert!(code == 0 || !request.terminal, "{text}");
                // Namespaces and groups are each container's own.
                said.push(without_numbers_of(&text, id));
            }
            assert!(said[0].contains("Seccomp:\t2"), "{}", said[0]);
            assert_eq!(said[0], said[1], "{request:?}");
        }
    }
    place.close().await;
}

/// Leaves out what names a container, and numbers of namespaces and processes.
fn without_numbers_of(text: &str, id: &str) -> String {
    // A terminal is the user's where the shim makes it; the OCI runtime leaves it to root.
    let numbers = |line: &str| line.starts_with("NSpid") || line.contains(":character special file");
    let lines = text.lines().filter(|line| !numbers(line));
    let lines = lines.map(|line| match line.split_once(":[") {
        Some((namespace, _)) => namespace.to_owned(),
        None => line.trim_end().replace(&format!("/{id}"), "/ID"),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_user_gets_the_groups_that_are_given_to_a_container() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let exec = async |user: &str, groups: Vec<String>| {
        let command = ["id", "-G"].map(str::to_owned).to_vec();
        let request = ExecRequest { command, user: user.to_owned(), groups, ..ExecRequest::default() };
        place.runtime.exec("one", request).await
    };
    let groups_of = async |user: &str| {
        let (code, text) = collect(exec(user, groups()).await.unwrap()).await;
        assert_eq!(code, 0, "{text}");
        let mut numbers: Vec<u32> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(groups_of("web").await, [0, 33, 44, 777]);
    assert_eq!(groups_of("4711:4712").await, [0, 44, 777, 4712]);
    let unknown = exec("web", vec!["nosuch".to_owned()]).await.map(|_| ());
    assert!(
        matches!(&unknown, Err(Error::Invalid(text)) if text.contains("Unable to find group nosuch")),
        "{unknown:?}"
    );
    place.close().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_told_as_the_oci_runtime_tells_it() {
    let place = Place::new();
    for (name, text) in [("script", "#!/bin/sh\necho ran"), ("orphan", "#!/nowhere\n"), ("garbage", "\u{1}\u{2}\u{3}")]
    {
        let path = place.rootfs().join("bin").join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    for (id, oci_runtime) in [("ours", false), ("theirs", true)] {
        let mut wanted = run(&["/bin/sleep", "1000"]);
        wanted.change = Box::new(move |spec| change(spec, oci_runtime, false));
        place.start(id, wanted).await;
    }
    let of = |words: &[&str]| ExecRequest {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecRequest::default()
    };
    let requests = [
        of(&["nope"]),
        of(&["/nope"]),
        of(&["/etc/passwd"]),
        of(&["/etc"]),
        of(&["etc/passwd"]),
        of(&["../bin/nope"]),
        ExecRequest { working_directory: "/nowhere".to_owned(), ..of(&["true"]) },
        ExecRequest { working_directory: "/etc/passwd".to_owned(), ..of(&["true"]) },
        ExecRequest { environment: vec!["PATH=/nowhere".to_owned()], ..of(&["true"]) },
    ];
    for request in requests {
        let mut said = Vec::new();
        for id in ["ours", "theirs"] {
            match place.runtime.exec(id, request.clone()).await {
                Err(Error::CannotStart { code, message }) => said.push((code, message)),
                other => panic!("{request:?}: {:?}", other.map(|_| "ran")),
            }
        }
        assert_eq!(said[0], said[1], "{request:?}");
    }
    // The control, and what the OCI runtime tells when it is too late to.
    assert_eq!(place.exec("ours", &["script"]).await, (0, "ran\n".to_owned()));
    assert_eq!(place.exec("ours", &["bin/script"]).await, (0, "ran\n".to_owned()));
    for (name, wanted) in [("orphan", 127), ("garbage", 126)] {
        let failed = place.runtime.exec("ours", of(&[name])).await.map(|_| ());
        assert!(matches!(&failed, Err(Error::CannotStart { code, .. }) if *code == wanted), "{name}: {failed:?}");
    }
    place.close().await;
}

#[tokio::test]
async fn many_processes_at_once_are_each_found_with_their_end() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let all = (0..200).map(|number: i32| {
        let (place, text) = (&place, number.to_string());
        async move {
            let script = format!("echo {text}; exit {}", number % 100);
            assert_eq!(place.exec("one", &["sh", "-c", &script]).await, (number % 100, format!("{number}\n")));
        }
    });
    futures::future::join_all(all).await;
    place.close().await;
}
