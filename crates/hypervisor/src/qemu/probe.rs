//! Whether hardware assistance really runs guests: by running one. A device that opens proves nothing; there are machines
//! on which it makes a guest that hangs. The probe guest is the PC's own firmware and a boot sector of nine bytes that
//! switches it off, a tenth of a second where assistance works.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::PROGRAM;
use super::driver::find_program;
use crate::guest::Acceleration;

/// How long the probe guest may take.
const PATIENCE: Duration = Duration::from_secs(2);
const DEVICE: &str = "/dev/kvm";
/// The firmware boots from no smaller disk. Units: bytes.
const DISK_BYTES: usize = 1 << 20;
/// `mov dx,0xf4; mov al,0x10; out dx,al; hlt; jmp $-1`
const CODE: [u8; 9] = [0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd];
/// Where a boot sector says that it is one.
const SIGNATURE_AT: usize = 510;
/// What QEMU exits with when the guest writes 0x10 to the exit device: twice that, plus one.
const EXIT_CODE: i32 = 33;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// How guests will run.
    pub acceleration: Acceleration,
    /// Why, for a person.
    pub reason: String,
}

fn emulation(reason: impl Into<String>) -> Verdict {
    Verdict { acceleration: Acceleration::Emulation, reason: reason.into() }
}

/// Runs the probe guest. Never fails: what does not work means emulation.
pub async fn run() -> Verdict {
    if !Path::new(DEVICE).exists() {
        return emulation(format!("there is no {DEVICE}"));
    }
    let Some(program) = find_program(PROGRAM) else { return emulation(format!("{PROGRAM} is not installed")) };
    match guest_exits(&program, "kvm", PATIENCE).await {
        Ok(Some(EXIT_CODE)) => Verdict { acceleration: Acceleration::Hardware, reason: "a probe guest ran".to_owned() },
        Ok(Some(code)) => emulation(format!("{DEVICE} is there, but a probe guest did not start (exit code {code})")),
        Ok(None) => emulation(format!("{DEVICE} opens, but a probe guest hung for {} s", PATIENCE.as_secs())),
        Err(error) => emulation(format!("a probe guest could not be run: {error}")),
    }
}

/// Runs the probe guest; its exit code, or `None` when it took longer.
async fn guest_exits(program: &Path, accelerator: &str, patience: Duration) -> std::io::Result<Option<i32>> {
    let mut sector = vec![0u8; DISK_BYTES];
    sector[..CODE.len()].copy_from_slice(&CODE);
    sector[SIGNATURE_AT..SIGNATURE_AT + 2].copy_from_slice(&[0x55, 0xaa]);
    let disk = probe_disk(&sector)?;
    let blockdev =
        format!("{{\"driver\":\"file\",\"node-name\":\"d\",\"filename\":\"{}\",\"read-only\":true}}", disk.display());
    let mut command = Command::new(program);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-m",
        "32",
        "-boot",
        "strict=on",
    ]);
    command.args(["-machine", &format!("pc,accel={accelerator}"), "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.args(["-blockdev", &blockdev, "-device", "virtio-blk-pci,drive=d,bootindex=1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let ended = tokio::time::timeout(patience, child.wait()).await;
    let outcome = match ended {
        Ok(status) => Some(status?.code().unwrap_or(-1)),
        Err(_) => {
            child.kill().await?;
            None
        }
    };
    std::fs::remove_file(disk)?;
    Ok(outcome)
}

/// A file of our own with these bytes.
fn probe_disk(bytes: &[u8]) -> std::io::Result<std::path::PathBuf> {
    use std::os::unix::fs::OpenOptionsExt;
    static COUNTER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("nuee-probe-{}-{number}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(bytes)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The control: where guests run, the probe guest ends by itself, with its own exit code.
    #[tokio::test]
    async fn the_probe_guest_ends_itself_where_guests_run() {
        let program = find_program(PROGRAM).expect("qemu-system-x86 is installed");
        let code = guest_exits(&program, "tcg", Duration::from_secs(60)).await.unwrap();
        assert_eq!(code, Some(EXIT_CODE));
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_given_up_in_time() {
        let program = find_program(PROGRAM).expect("qemu-system-x86 is installed");
        assert_eq!(guest_exits(&program, "tcg", Duration::from_millis(1)).await.unwrap(), None);
    }
}
