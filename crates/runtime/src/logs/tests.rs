//! Reading logs, against files written here.

use futures::StreamExt;

use super::*;

fn entry(number: u32, kind: char, text: &str) -> String {
    format!("2026-01-01T00:00:{:02}.{:09}Z stdout {kind} {text}\n", number / 1_000, number % 1_000)
}

async fn all(path: &Path, options: LogOptions) -> Vec<String> {
    read(path.to_path_buf(), options, std::future::ready(()))
        .map(|line| String::from_utf8(line.unwrap().data.to_vec()).unwrap())
        .collect()
        .await
}

/// Two rotated files and the current one, 1,000 lines each.
fn three_files() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    for (file, range) in
        [(rotated(&path, 2), 0..1_000), (rotated(&path, 1), 1_000..2_000), (path.clone(), 2_000..3_000)]
    {
        let text: String = range.map(|number| entry(number, 'F', &format!("line {number}"))).collect();
        std::fs::write(file, text).unwrap();
    }
    (directory, path)
}

#[tokio::test]
async fn files_are_read_from_the_oldest() {
    let (_directory, path) = three_files();
    let lines = all(&path, LogOptions::default()).await;
    assert_eq!(lines.len(), 3_000);
    assert!(lines.iter().enumerate().all(|(number, line)| *line == format!("line {number}\n")));
}

#[tokio::test]
async fn the_tail_reaches_over_rotated_files() {
    let (_directory, path) = three_files();
    for wanted in [0, 1, 999, 1_000, 1_001, 2_500, 5_000] {
        let lines = all(&path, LogOptions { tail: Some(wanted), ..LogOptions::default() }).await;
        assert_eq!(lines.len(), wanted.min(3_000), "tail {wanted}");
        if let Some(first) = lines.first() {
            assert_eq!(*first, format!("line {}\n", 3_000 - wanted.min(3_000)));
        }
    }
}

#[tokio::test]
async fn parts_of_a_line_count_as_one_in_the_tail() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let text =
        entry(1, 'F', "a") + &entry(2, 'P', "b") + &entry(2, 'P', "c") + &entry(2, 'F', "d") + &entry(3, 'P', "e");
    std::fs::write(&path, text).unwrap();
    let lines = all(&path, LogOptions { tail: Some(2), ..LogOptions::default() }).await;
    assert_eq!(lines, ["b", "c", "d\n", "e"]);
}

#[tokio::test]
async fn times_bound_the_lines() {
    let (_directory, path) = three_files();
    let base = parse(entry(0, 'F', "").trim_end_matches('\n').as_bytes()).unwrap().0;
    let options = LogOptions {
        since_ns: Some(base + 1_000_000_005),
        until_ns: Some(base + 1_000_000_008),
        ..LogOptions::default()
    };
    assert_eq!(all(&path, options).await, ["line 1005\n", "line 1006\n", "line 1007\n"]);
}

#[tokio::test]
async fn following_goes_over_rotations_and_ends_with_the_container() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut stream = read(path.clone(), options, async {
        let _ = ended.await;
    });
    for round in 0..20_u32 {
        std::fs::write(&path, entry(round, 'F', &format!("round {round}"))).unwrap();
        let line = stream.next().await.unwrap().unwrap();
        assert_eq!(line.data, format!("round {round}\n").as_bytes());
        std::fs::rename(&path, rotated(&path, 1)).unwrap();
    }
    std::fs::write(&path, entry(99, 'F', "last")).unwrap();
    end.send(()).unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().data, b"last\n"[..]);
    assert!(stream.next().await.is_none());
}
