//! Small things that containers have of Docker: groups, what is mounted below a mount, files that programs look for.

use anyhow::Result;
use testkit::Nuee;

use crate::with_images;

#[test]
fn containers_have_what_dockers_have_in_small_things() -> Result<()> {
    let nuee = with_images()?;
    groups_of_execs(&nuee)?;
    mounts_below_mounts(&nuee)?;
    marks(&nuee)?;
    wrong_log_options(&nuee)?;
    nuee.finish()
}

fn groups_of_execs(nuee: &Nuee) -> Result<()> {
    let groups = ["--group-add", "777", "--group-add", "nobody"];
    let make = "echo nobody:x:65534: > /etc/group; echo team:x:99:nobody >> /etc/group";
    // Names are looked up in what the container has, so that is made first.
    nuee.docker(&["run", "--name", "grouped", "busybox:test", "sh", "-c", make])?.success()?;
    nuee.docker(&["commit", "grouped", "grouped:test"])?.success()?;
    nuee.docker(&["rm", "grouped"])?.success()?;
    let run = [&["run", "-d", "--name", "grouped"], &groups[..], &["grouped:test", "sleep", "600"]].concat();
    nuee.docker(&run)?.success()?;
    let groups = |user: &[&str]| -> Result<Vec<u32>> {
        let exec = [&["exec"], user, &["grouped", "id", "-G"]].concat();
        let said = nuee.docker(&exec)?.success()?.stdout;
        let mut numbers = said.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        numbers.sort_unstable();
        Ok(numbers)
    };
    assert_eq!(groups(&[])?, [0, 777, 65534]);
    assert_eq!(groups(&["-u", "1000"])?, [0, 777, 65534]);
    assert_eq!(groups(&["-u", "1000:5"])?, [5, 777, 65534]);
    assert_eq!(groups(&["-u", "nobody"])?, [99, 777, 65534]);
    nuee.docker(&["exec", "grouped", "rm", "/etc/group"])?.success()?;
    let refused = nuee.docker(&["exec", "-u", "1000", "grouped", "id"])?;
    assert_ne!(refused.status, 0);
    assert!(refused.stdout.contains("nobody: no matching entries in group file"), "{refused:?}");
    nuee.docker(&["rm", "-f", "grouped"])?.success().map(drop)
}

fn mounts_below_mounts(nuee: &Nuee) -> Result<()> {
    let outer = nuee.files().join("outer");
    let inner = outer.join("inner");
    std::fs::create_dir_all(&inner)?;
    nuee.run("mount", &["-t", "tmpfs", "below", &inner.display().to_string()])?.success()?;
    let old = [("DOCKER_API_VERSION", "1.43")];
    let source = format!("type=bind,source={},target=/m", outer.display());
    // What can be written: the mount itself, what is mounted below it.
    let writable = |environment: &[(&str, &str)], mount: &[&str]| -> Result<String> {
        let script = "touch /m/x 2>/dev/null && echo -n outer; touch /m/inner/x 2>/dev/null && echo -n inner; \
             test -e /m/inner && grep -q ' /m/inner ' /proc/mounts && echo -n below; rm -f /m/x /m/inner/x";
        let words = [&["run", "--rm"], mount, &["busybox:test", "sh", "-c", script]].concat();
        let mut command = nuee.docker_command(&words);
        command.envs(environment.iter().copied());
        Ok(testkit::Output::of(command)?.stdout)
    };
    let by_mount = |environment: &[(&str, &str)], options: &str| {
        writable(environment, &["--mount", &format!("{source}{options}")])
    };
    assert_eq!(by_mount(&[], "")?, "outerinnerbelow");
    assert_eq!(by_mount(&[], ",bind-recursive=enabled")?, "outerinnerbelow");
    assert_eq!(by_mount(&[], ",readonly")?, "below");
    assert_eq!(by_mount(&[], ",readonly,bind-recursive=writable")?, "innerbelow");
    assert_eq!(by_mount(&[], ",readonly,bind-propagation=rprivate,bind-recursive=readonly")?, "below");
    // Without what is mounted there, the directory itself is seen.
    assert_eq!(by_mount(&[], ",bind-recursive=disabled")?, "outerinner");
    assert_eq!(by_mount(&[], ",bind-nonrecursive")?, "outerinner");
    assert_eq!(by_mount(&[], ",readonly,bind-recursive=disabled")?, "");
    let line = format!("{}:/m:ro", outer.display());
    assert_eq!(writable(&[], &["-v", &line])?, "below");
    // As it was before that version of the API.
    assert_eq!(writable(&old, &["-v", &line])?, "innerbelow");
    assert_eq!(by_mount(&old, ",readonly")?, "innerbelow");
    nuee.run("umount", &[&inner.display().to_string()])?.success().map(drop)
}

fn marks(nuee: &Nuee) -> Result<()> {
    let look = "test -f /.dockerenv && test ! -s /.dockerenv && readlink /etc/mtab && grep -c ' / overlay ' /etc/mtab";
    for flags in [&["--rm"][..], &["--rm", "--read-only"], &["--name", "marked"]] {
        let run = [&["run"], flags, &["busybox:test", "sh", "-c", look]].concat();
        assert_eq!(nuee.docker(&run)?.success()?.stdout, "/proc/mounts\n1\n", "{flags:?}");
    }
    assert_eq!(nuee.docker(&["diff", "marked"])?.success()?.stdout, "");
    // What the container does with them is its change.
    let change = "rm /.dockerenv; rm /etc/mtab; echo mine > /etc/mtab";
    nuee.docker(&["run", "--name", "changed", "busybox:test", "sh", "-c", change])?.success()?;
    let changes = nuee.docker(&["diff", "changed"])?.success()?.stdout;
    let mut changes: Vec<&str> = changes.lines().collect();
    changes.sort_unstable();
    assert_eq!(changes, ["C /etc", "C /etc/mtab", "D /.dockerenv"]);
    nuee.docker(&["commit", "changed", "changed:test"])?.success()?;
    let again = ["run", "--rm", "changed:test", "sh", "-c", "test -f /.dockerenv && readlink /etc/mtab"];
    assert_eq!(nuee.docker(&again)?.success()?.stdout, "/proc/mounts\n");
    // Where there is something to copy before the first start, they are there, too.
    nuee.docker(&["create", "--name", "unstarted", "busybox:test", "true"])?.success()?;
    let copy = nuee.files().join("copied");
    nuee.docker(&["cp", "unstarted:/.dockerenv", &copy.display().to_string()])?.success()?;
    assert_eq!(std::fs::metadata(&copy)?.len(), 0);
    nuee.docker(&["rm", "marked", "changed", "unstarted"])?.success().map(drop)
}

fn wrong_log_options(nuee: &Nuee) -> Result<()> {
    let run = ["run", "--name", "tagged", "--log-opt", "tag={{.Nope}}", "busybox:test", "true"];
    nuee.docker(&run)?.failure(125, "failed to initialize logging driver: template: log-tag:1:2: executing")?;
    let state = nuee.docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "tagged"])?.success()?;
    assert_eq!(state.text(), "created 128");
    let pattern = ["run", "--rm", "--log-opt", "env-regex=(", "busybox:test", "true"];
    nuee.docker(&pattern)?.failure(125, "error parsing regexp")?;
    nuee.docker(&["rm", "tagged"])?.success().map(drop)
}
