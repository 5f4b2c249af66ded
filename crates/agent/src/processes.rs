//! Process tables of containers (`docker top`).

use std::collections::HashSet;

use node::{Error, ProcessTable, Result};

/// Longest output of ps(1) that is read. Units: bytes.
const OUTPUT_LIMIT: usize = 1 << 20;

/// The processes with these ids; arguments other than `-ef` are left to the machine's ps(1), as Docker does.
pub async fn table(pids: &[u32], arguments: &str) -> Result<ProcessTable> {
    if matches!(arguments.trim(), "" | "-ef") {
        return Ok(runtime::processes::table(pids));
    }
    let output = tokio::process::Command::new("ps")
        .args(arguments.split_whitespace())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Error::NotSupported(format!("cannot run ps: {error}")))?;
    if !output.status.success() {
        return Err(Error::Invalid(format!("ps: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout[..output.stdout.len().min(OUTPUT_LIMIT)]).into_owned();
    select(&text, &pids.iter().copied().collect())
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

    #[test]
    fn only_the_containers_own_processes_are_shown() {
        let text = "  PID USER COMMAND\n    1 root init\n   42 web  nginx: master process\n";
        let table = select(text, &HashSet::from([42])).unwrap();
        assert_eq!(table.processes, [["42", "web", "nginx: master process"]]);
        assert!(select("USER COMMAND\n", &HashSet::new()).is_err());
    }
}
