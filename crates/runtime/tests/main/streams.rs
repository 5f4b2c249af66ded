//! Standard streams: attach, input, terminals, exec, logs.

use futures::StreamExt;
use node::{AttachOptions, ExecRequest, TerminalSize};
use runtime::Error;
use tokio::io::AsyncWriteExt;

use crate::place::{PATIENCE, Place, collect, run, shell};

fn exec(command: &[&str]) -> ExecRequest {
    ExecRequest { command: command.iter().map(|word| (*word).to_owned()).collect(), ..ExecRequest::default() }
}

#[tokio::test]
async fn attaching_before_the_start_misses_nothing() {
    let place = Place::new();
    place.create("one", shell("echo first; echo second >&2; exit 5")).await;
    let session = place.runtime.attach("one", AttachOptions::default()).await.unwrap();
    place.runtime.start("one").await.unwrap();
    let (code, text) = collect(session).await;
    assert_eq!(code, 5);
    assert!(text.contains("first\n") && text.contains("second\n"), "{text}");
    place.close().await;
}

#[tokio::test]
async fn a_late_client_is_told_what_came_before() {
    let place = Place::new();
    let mut wanted = shell("echo before; read line; echo after $line");
    wanted.open_stdin = true;
    place.start("one", wanted).await;
    place.until_logged("one", "before").await;
    let options = AttachOptions { stdin: true, replay_logs: true, wait_for_start: false };
    let mut session = place.runtime.attach("one", options).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"all\n").await.unwrap();
    assert_eq!(collect(session).await, (0, "before\nafter all\n".to_owned()));
    place.close().await;
}

#[tokio::test]
async fn the_end_of_the_input_reaches_the_process_once_only() {
    let place = Place::new();
    let mut wanted = run(&["/bin/cat"]);
    (wanted.open_stdin, wanted.stdin_once) = (true, true);
    place.create("once", wanted).await;
    let options = AttachOptions { stdin: true, ..AttachOptions::default() };
    let mut session = place.runtime.attach("once", options.clone()).await.unwrap();
    place.runtime.start("once").await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let sent = "0123456789".repeat(50_000);
    let text = sent.clone();
    tokio::spawn(async move {
        stdin.write_all(text.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
    });
    let (code, received) = collect(session).await;
    assert_eq!((code, received.len()), (0, sent.len()));

    let mut wanted = run(&["/bin/cat"]);
    wanted.open_stdin = true;
    place.start("often", wanted).await;
    for text in ["one\n", "two\n"] {
        let mut session = place.runtime.attach("often", options.clone()).await.unwrap();
        let mut stdin = session.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        assert_eq!(session.output.next().await.unwrap().data, text.as_bytes());
        stdin.shutdown().await.unwrap();
    }
    place.close().await;
}

#[tokio::test]
async fn a_terminal_has_a_size_and_changes_it() {
    let place = Place::new();
    let mut wanted = shell("read go; stty size");
    (wanted.terminal, wanted.open_stdin) = (true, true);
    place.create("one", wanted).await;
    let mut session =
        place.runtime.attach("one", AttachOptions { stdin: true, ..AttachOptions::default() }).await.unwrap();
    place.runtime.start("one").await.unwrap();
    place.runtime.resize("one", TerminalSize { columns: 123, rows: 45 }).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    let (code, text) = collect(session).await;
    assert_eq!(code, 0);
    assert!(text.contains("45 123"), "{text}");
    place.close().await;
}

#[tokio::test]
async fn exec_takes_user_environment_directory_and_input() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    assert_eq!(place.exec("one", &["/bin/sh", "-c", "echo a; exit 9"]).await, (9, "a\n".to_owned()));
    let request = ExecRequest {
        user: "web".to_owned(),
        environment: vec!["X=y".to_owned()],
        working_directory: "/tmp".to_owned(),
        ..exec(&["sh", "-c", "id -u; id -G; echo $X $HOME; pwd"])
    };
    let session = place.runtime.exec("one", request).await.unwrap();
    assert!(session.pid > 0);
    assert_eq!(collect(session).await, (0, "33\n33 44\ny /srv\n/tmp\n".to_owned()));
    let mut session = place.runtime.exec("one", ExecRequest { stdin: true, ..exec(&["cat"]) }).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through").await.unwrap();
    stdin.shutdown().await.unwrap();
    assert_eq!(collect(session).await, (0, "through".to_owned()));
    let size = Some(TerminalSize { columns: 100, rows: 30 });
    let session =
        place.runtime.exec("one", ExecRequest { terminal: true, size, ..exec(&["sh", "-c", "tty; stty size"]) }).await;
    let (code, text) = collect(session.unwrap()).await;
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("30 100"), "{text}");
    place.close().await;
}

#[tokio::test]
async fn exec_of_what_cannot_run_is_told_as_docker_tells_it() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    for (command, wanted) in [("nope", 127), ("/nope", 127), ("/etc/passwd", 126), ("/etc", 126)] {
        let Err(Error::CannotStart { code, message }) = place.runtime.exec("one", exec(&[command])).await else {
            panic!("{command} ran");
        };
        assert_eq!(code, wanted, "{command}: {message}");
    }
    let Err(Error::CannotStart { message, .. }) = place.runtime.exec("one", exec(&["nope"])).await else { panic!() };
    assert_eq!(message, "exec: \"nope\": executable file not found in $PATH");
    place.close().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_the_log() {
    let place = Place::new();
    place.create("one", shell("yes 0123456789abcdef | head -n 500000; echo finished")).await;
    let stuck = place.runtime.attach("one", AttachOptions::default()).await.unwrap();
    place.runtime.start("one").await.unwrap();
    place.until_logged("one", "finished").await;
    // It lost nothing either.
    let (code, text) = collect(stuck).await;
    assert_eq!((code, text.len()), (0, 17 * 500_000 + 9));
    place.close().await;
}

#[tokio::test]
async fn who_is_attached_hears_of_the_end_before_anybody_can_delete() {
    let place = Place::new();
    for number in 0..20 {
        let id = format!("short{number}");
        let mut wanted = shell("read line; echo said; exit 3");
        wanted.open_stdin = true;
        place.start(&id, wanted).await;
        // As the agent does: it waits from the start on, and clears at once.
        let (runtime, owned) = (place.runtime.clone(), id.clone());
        let cleared = tokio::spawn(async move {
            runtime.wait(&owned).await.unwrap();
            runtime.delete(&owned).await.unwrap();
        });
        tokio::task::yield_now().await;
        let options = AttachOptions { stdin: true, ..AttachOptions::default() };
        let mut session = place.runtime.attach(&id, options).await.unwrap();
        session.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
        assert_eq!(collect(session).await, (3, "said\n".to_owned()));
        cleared.await.unwrap();
    }
    place.close().await;
}

#[tokio::test]
async fn a_dropped_session_leaves_the_process_running() {
    let place = Place::new();
    place.start("one", run(&["/bin/sleep", "1000"])).await;
    let session = place.runtime.exec("one", exec(&["sh", "-c", "yes | head -n 200000; echo done > /tmp/done"])).await;
    drop(session.unwrap());
    let done = place.rootfs().join("tmp/done");
    let written = async {
        while !done.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.unwrap();
    place.close().await;
}
