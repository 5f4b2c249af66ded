//! The ids by which programs on this machine reach guests without a network (`AF_VSOCK`). Each guest that is to be reached so has one that
//! no other guest of this machine has. It is noted with how the guest was launched: one that sleeps has it when it wakes, since nobody
//! else is given it meanwhile.

use std::collections::HashSet;
use std::path::Path;

use hypervisor::qemu::vsock::Device;

use super::moving::{self, Launched};
use super::shared::{Guests, hash};
use crate::error::{Error, Result};

/// The first id that guests are given. Small ones are what people give to guests of their own, and the first three are the kernel's.
/// `Source:` vsock(7)
const FIRST_ID: u32 = 1 << 30;
/// How many there are.
const IDS: u32 = 1 << 30;
/// How many are tried for one guest: far more than a machine has guests.
const ATTEMPTS_MAX: u32 = 1 << 16;

const _: () = assert!(FIRST_ID > libc::VMADDR_CID_HOST && IDS < libc::VMADDR_CID_ANY - FIRST_ID && ATTEMPTS_MAX <= IDS);

/// The id that a guest would have, or, where somebody has that, the next one that is free.
fn choose(wanted: u32, is_free: impl Fn(u32) -> Result<bool>) -> Result<u32> {
    let first = wanted % IDS;
    for step in 0..ATTEMPTS_MAX {
        let id = FIRST_ID + (first + step) % IDS;
        if is_free(id)? {
            return Ok(id);
        }
    }
    Err(Error::Invalid(format!("no id for vsock is free: {ATTEMPTS_MAX} were tried")))
}

/// The ids of the other guests of this machine, also of those that are off or asleep.
fn taken(guests: &Guests, uid: &str) -> HashSet<u32> {
    let others = guests.recorded().into_iter().filter(|other| other != uid);
    // Many a directory has no record. Where one cannot be read the kernel knows the id, while that guest runs.
    others.filter_map(|other| moving::launched(guests, &other).ok()?.vsock_cid).collect()
}

/// Notes how a guest is launched that can be reached so, and gives it its id: the same one at each start, if nobody else has it. One that
/// has an id keeps it.
///
/// Errors: `device` cannot be opened.
pub fn note_launch(guests: &Guests, uid: &str, launched: &mut Launched, device: &Path) -> Result<()> {
    // From the choice until it is noted nobody else chooses, or holds an id for a look.
    let _alone = guests.vsock.lock();
    let device = Device::open(device)?;
    if launched.vsock_cid.is_none() {
        let others = taken(guests, uid);
        let id = choose(hash(uid), |id| Ok(!others.contains(&id) && device.is_free(id)?))?;
        launched.vsock_cid = Some(id);
    }
    moving::note_launch(guests, uid, launched)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::error::chain;

    fn launched(vsock_cid: Option<u32>) -> Launched {
        Launched { vsock_cid, ..Launched::default() }
    }

    #[tokio::test]
    async fn without_the_device_nothing_is_launched_and_it_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let guests = Guests::new(directory.path(), PathBuf::new(), String::new());
        let missing = directory.path().join("vhost-vsock");
        // Neither one that boots nor one that is to wake.
        for id in [None, Some(FIRST_ID)] {
            let error = note_launch(&guests, "a", &mut launched(id), &missing).unwrap_err();
            let text = chain(&error);
            assert!(text.contains(missing.to_str().unwrap()) && text.contains("modprobe vhost_vsock"), "{text}");
            assert!(moving::launched(&guests, "a").is_err());
        }
    }

    #[tokio::test]
    async fn an_id_stays_its_guests_while_that_is_off() {
        let directory = tempfile::tempdir().unwrap();
        let guests = Guests::new(directory.path(), PathBuf::new(), String::new());
        // Stands in for the device, of which nothing is asked for who has an id.
        let device = directory.path().join("vhost-vsock");
        std::fs::write(&device, "").unwrap();
        note_launch(&guests, "a", &mut launched(Some(FIRST_ID + 7)), &device).unwrap();
        moving::note_launch(&guests, "b", &launched(None)).unwrap();
        std::fs::create_dir(guests.directory("c")).unwrap();
        assert_eq!(moving::launched(&guests, "a").unwrap().vsock_cid, Some(FIRST_ID + 7));
        assert_eq!(taken(&guests, "b"), HashSet::from([FIRST_ID + 7]));
        assert!(taken(&guests, "a").is_empty());
    }

    #[test]
    fn when_all_are_taken_that_is_said() {
        assert!(choose(3, |_| Ok(false)).is_err());
        assert!(choose(3, |_| Err(Error::Timeout("a look"))).is_err());
    }

    proptest! {
        #[test]
        fn no_id_is_reserved_or_given_twice_and_each_guest_has_its_own_again(
            wishes in prop::collection::vec(prop_oneof![0..4_u32, IDS - 4..IDS, any::<u32>()], 1..64)
        ) {
            let (mut given, mut guests) = (HashSet::<u32>::new(), Vec::new());
            for wish in wishes {
                let id = choose(wish, |id| Ok(!given.contains(&id))).unwrap();
                prop_assert!(id > libc::VMADDR_CID_HOST && id < libc::VMADDR_CID_ANY, "{}", id);
                prop_assert!(given.insert(id), "{} twice", id);
                guests.push((wish, id));
            }
            // Started again among the others; and the first one had what it would have alone.
            for (wish, id) in &guests {
                let again = choose(*wish, |one| Ok(one == *id || !given.contains(&one))).unwrap();
                prop_assert_eq!(again, *id);
            }
            prop_assert_eq!(choose(guests[0].0, |_| Ok(true)).unwrap(), guests[0].1);
        }
    }
}
