//! Process tables of containers (`docker top`).

use std::collections::HashSet;

use node::patience::{self, ANSWER_TIMEOUT, NoAnswer};
use node::{Error, ProcessTable, Result};

/// Longest output of ps(1) that is read. Units: bytes.
const OUTPUT_LIMIT: usize = 1 << 20;

/// The processes of container `id`, which have these ids; arguments other than `-ef` are left to the machine's ps(1), as Docker does.
///
/// Errors: `Unavailable` when a process can hold back what is asked for, as one does whose command line lies on a dead file system.
pub async fn table(id: &str, pids: Vec<u32>, arguments: &str) -> Result<ProcessTable> {
    let about = format!("the process table of container {id}");
    if matches!(arguments.trim(), "" | "-ef") {
        return Ok(patience::ask(about, move || runtime::processes::table(&pids)).await?);
    }
    by_program("ps", about, &pids.into_iter().collect(), arguments).await
}

async fn by_program(program: &str, about: String, pids: &HashSet<u32>, arguments: &str) -> Result<ProcessTable> {
    let ps = tokio::process::Command::new(program).args(arguments.split_whitespace()).kill_on_drop(true).output();
    let output = tokio::time::timeout(ANSWER_TIMEOUT, ps)
        .await
        .map_err(|_| NoAnswer::Silent(about))?
        .map_err(|error| Error::NotSupported(format!("cannot run ps: {error}")))?;
    if !output.status.success() {
        return Err(Error::Invalid(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(OUTPUT_LIMIT)]).into_owned();
    select(&text, pids)
}

fn select(text: &str, pids: &HashSet<u32>) -> Result<ProcessTable> {
    let mut lines = text.lines();
    let titles: Vec<String> = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let column = titles.iter().position(|t| t == "PID");
    let column = column.ok_or_else(|| Error::Invalid("Couldn't find PID field in ps output".to_owned()))?;
    let last = titles.len().saturating_sub(1);
    let rows = lines.filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let pid: u32 = words.get(column)?.parse().ok()?;
        let mut row: Vec<String> = words.iter().take(last).map(|w| (*w).to_owned()).collect();
        row.push(words.get(last..).unwrap_or(&[]).join(" "));
        pids.contains(&pid).then_some(row)
    });
    Ok(ProcessTable { processes: rows.collect(), titles })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_program_that_waits_for_a_process_is_given_up() {
        let pids = HashSet::from([1]);
        let given_up = by_program("sleep", "the table".to_owned(), &pids, "1000").await.unwrap_err();
        assert!(matches!(&given_up, Error::Unavailable(text) if text == "the table does not answer"), "{given_up}");
    }

    #[test]
    fn only_the_containers_own_processes_are_shown() {
        let text = "  PID USER COMMAND\n    1 root init\n   42 web  nginx: master process\n";
        let table = select(text, &HashSet::from([42])).unwrap();
        assert_eq!(table.processes, [["42", "web", "nginx: master process"]]);
        assert!(select("USER COMMAND\n", &HashSet::new()).is_err());
    }
}
