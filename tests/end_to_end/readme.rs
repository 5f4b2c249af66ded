//! Every command of the README, run as it stands there, block by block.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use testkit::{Nuee, Pool};

const README: &str = include_str!("../../README.md");
const MAKEFILE: &str = include_str!("../../Makefile");

/// Stand-ins that lead the README's words to the test's own Nuée. `make up` and `make down` do what the Makefile does after
/// packages and build; the target `test` is what runs this.
const STAND_INS: &str = r#"
nuee() {
    case "$1" in
        restore) command "$PROGRAM" "$@" --data-dir "$DATA-restored" ;;
        join|leave) nsenter --net --mount --target "$SECOND" -- "$PROGRAM" "$@" --data-dir "$SECOND_DATA" ;;
        *) command "$PROGRAM" "$@" --data-dir "$DATA" ;;
    esac
}
make() {
    case "$1" in
        up) DATA_DIR="$DATA" NUEE="$PROGRAM" sh "$FIRST_WORKLOAD" ;;
        down) nuee down --all ;;
        test) ;;
        *) echo "the README names a target that this test does not know: $1" >&2; return 1 ;;
    esac
}
"#;

/// The shell blocks of the text.
fn blocks(text: &str) -> Vec<String> {
    let parts = text.split("```sh\n").skip(1);
    parts.filter_map(|part| Some(part.split_once("```")?.0.to_owned())).collect()
}

/// Runs one block as it stands, but for paths; stops at the first command that fails.
fn run(nuee: &Nuee, second: &Nuee, block: &str) -> Result<()> {
    let files = nuee.files();
    let mut block = block.to_owned();
    if block.contains("TOKEN") {
        let line = nuee.nuee(&["token", "create"])?.success()?.text().to_owned();
        let words = line.split_once("--token ").context("no token")?.1;
        block = block.replace("TOKEN FIRST-MACHINE:6443", words);
    }
    let block = block
        .replace("/var/lib/nuee", &nuee.data().display().to_string())
        .replace("FILE", &files.join("backup").display().to_string());
    // A pipe's first commands must not fail unseen.
    let script = format!("set -euo pipefail\n{STAND_INS}\n{block}");
    let path = |path: &Path| path.display().to_string();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let assignments = [
        format!("PROGRAM={}", env!("CARGO_BIN_EXE_nuee")),
        format!("DATA={}", path(&nuee.data())),
        format!("SECOND={}", second.space().pid()),
        format!("SECOND_DATA={}", path(&second.data())),
        format!("FIRST_WORKLOAD={}", path(&root.join("contrib/first-workload.sh"))),
        format!("HOME={}", path(files)),
        format!("DOCKER_HOST=unix://{}", path(&nuee.data().join("docker.sock"))),
        format!("KUBECONFIG={}", path(&nuee.data().join("kubeconfig"))),
    ];
    let mut arguments: Vec<&str> = assignments.iter().map(String::as_str).collect();
    arguments.extend(["bash", "-c", &script]);
    nuee.run("env", &arguments)?.success().with_context(|| format!("this block of the README:\n{block}")).map(drop)
}

#[test]
fn every_command_of_the_readme_runs() -> Result<()> {
    let mut pool = Pool::new(env!("CARGO_BIN_EXE_nuee"))?;
    for _ in 0..2 {
        let machine = pool.prepare()?;
        pool.machines.push(machine);
    }
    let (nuee, second) = (&pool.machines[0], &pool.machines[1]);
    let blocks = blocks(README);
    ensure!(blocks.len() >= 5, "the README's blocks are not found");
    for block in &blocks {
        let starts_one = block.contains("make up") || block.contains("nuee up");
        match nuee.status()?["ready"] == true {
            true if starts_one => drop(nuee.nuee(&["down"])?.success()?),
            false if !starts_one => nuee.up()?,
            _ => {}
        }
        run(nuee, second, block)?;
    }
    ensure!(nuee.data().with_file_name("data-restored").join("store").exists(), "nothing was restored");
    pool.finish()
}

#[test]
fn every_target_that_the_readme_names_is_there() {
    let named = README.split("make ").skip(1).filter_map(|rest| {
        let word = rest.split(|letter: char| !letter.is_ascii_lowercase() && letter != '-').next()?;
        README.contains(&format!("`make {word}")).then_some(word)
    });
    for target in named {
        assert!(MAKEFILE.lines().any(|line| line.starts_with(&format!("{target}:"))), "make {target}");
    }
}
