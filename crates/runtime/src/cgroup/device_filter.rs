//! Which devices a group may use: rules, their v1 text, and on v2 a small BPF program that decides by them. Source:
//! linux/bpf.h (`struct bpf_cgroup_dev_ctx`), the OCI runtime specification (`linux.resources.devices`).

use std::fmt;
use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys::BpfInstruction;
use crate::{Error, Result};

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;
/// `BPF_DEVCG_ACC_*` bits of the access word.
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
/// Programs stay far below the kernel's limit with so many rules.
const RULES_MAX: usize = 1_000;

/// One rule; `None` means any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Block devices (`true`), character devices (`false`).
    pub block: Option<bool>,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
    /// May make nodes.
    pub mknod: bool,
}

impl From<&LinuxDeviceCgroup> for DeviceRule {
    fn from(rule: &LinuxDeviceCgroup) -> Self {
        let access = rule.access().as_deref().unwrap_or("rwm");
        let number = |value: Option<i64>| value.and_then(|value| u32::try_from(value).ok());
        Self {
            allow: rule.allow(),
            block: match rule.typ() {
                Some(LinuxDeviceType::B) => Some(true),
                Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(false),
                _ => None,
            },
            major: number(rule.major()),
            minor: number(rule.minor()),
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        }
    }
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Some(block) = self.block else { return f.write_str("a") };
        let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
        write!(f, "{} {}:{} ", if block { 'b' } else { 'c' }, number(self.major), number(self.minor))?;
        for (wanted, letter) in [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')] {
            if wanted {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// The program: the last rule that matches decides, so rules are tried from the last; no match means deny.
pub(super) fn program(rules: &[DeviceRule]) -> Vec<BpfInstruction> {
    // r1 = context {u32 access << 16 | type, u32 major, u32 minor}; r2 = type, r3 = access, r4 = major, r5 = minor.
    let mut code = vec![
        BpfInstruction::load_word(2, 1, 0),
        BpfInstruction::and(2, 0xffff),
        BpfInstruction::load_word(3, 1, 0),
        BpfInstruction::shift_right(3, 16),
        BpfInstruction::load_word(4, 1, 4),
        BpfInstruction::load_word(5, 1, 8),
    ];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        if let Some(block) = rule.block {
            tests.push(BpfInstruction::jump_if_not_equal(2, if block { BLOCK } else { CHARACTER }));
        }
        let mut access = 0;
        for (wanted, bit) in [(rule.read, READ), (rule.write, WRITE), (rule.mknod, MKNOD)] {
            access |= if wanted { bit } else { 0 };
        }
        if access != READ | WRITE | MKNOD {
            tests.push(BpfInstruction::copy(1, 3));
            if rule.allow {
                // Applies only if everything that is asked for is in the rule.
                tests.push(BpfInstruction::and(1, !access));
                tests.push(BpfInstruction::jump_if_not_equal(1, 0));
            } else {
                // Denying part of what is asked for denies all of it.
                tests.push(BpfInstruction::and(1, access));
                tests.push(BpfInstruction::jump_if_equal(1, 0));
            }
        }
        for (register, value) in [(4, rule.major), (5, rule.minor)] {
            if let Some(value) = value {
                tests.push(BpfInstruction::jump_if_not_equal(register, value));
            }
        }
        // Each jump that fails goes past the two instructions of the verdict.
        let length = tests.len();
        for (index, mut test) in tests.into_iter().enumerate() {
            test.jump_forward(length - index + 1);
            code.push(test);
        }
        code.push(BpfInstruction::set(0, u32::from(rule.allow)));
        code.push(BpfInstruction::exit());
        if length == 0 {
            // It matches everything: the kernel refuses code that nothing reaches.
            return code;
        }
    }
    code.push(BpfInstruction::set(0, 0));
    code.push(BpfInstruction::exit());
    code
}

/// Attaches the rules to the group at `directory`.
pub(super) fn attach(directory: &Path, rules: &[DeviceRule]) -> Result<()> {
    if rules.len() > RULES_MAX {
        return Err(Error::Invalid(format!("more than {RULES_MAX} device rules")));
    }
    let group = std::fs::File::open(directory).map_err(Error::io("open", directory))?;
    crate::sys::attach_device_program(group.as_fd(), &program(rules))
        .map_err(Error::io("attach a device filter to", directory))
}
