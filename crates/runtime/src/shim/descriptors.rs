//! Descriptors that come over a socket beside its bytes: each has an owner at once, whatever else is wrong with their message.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::protocol::CARRIED_AT_ONCE;

/// Reads from a socket, with the descriptors that come along. None of them are taken when they were more than one message may bring,
/// or than this process may have: nobody can say which are missing.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> std::io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(CARRIED_AT_ONCE))];
    // Closes what is still in it at its end.
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    if !message.flags.contains(ReturnFlags::CTRUNC) {
        for one in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = one {
                descriptors.extend(some);
            }
        }
    }
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, PipeReader};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    /// A message with so many descriptors of the end of a pipe, whose other end tells when none is left; what was received of them.
    fn sent(count: usize) -> (PipeReader, Vec<OwnedFd>) {
        let (told, tells) = std::io::pipe().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let control = [ControlMessage::ScmRights(&vec![tells.as_raw_fd(); count])];
        sendmsg::<()>(here.as_raw_fd(), &[IoSlice::new(b"x")], &control, MsgFlags::empty(), None).unwrap();
        let (bytes, descriptors) = receive(&there, &mut [0; 8]).unwrap();
        assert_eq!(bytes, 1);
        (told, descriptors)
    }

    /// Whether all that was sent is closed within so many milliseconds: a child of another test may have it until it executes its program.
    fn is_closed(told: &PipeReader, patience: u16) -> bool {
        let mut set = [PollFd::new(told.as_fd(), PollFlags::POLLIN)];
        poll(&mut set, PollTimeout::from(patience)).unwrap();
        set[0].revents().is_some_and(|flags| flags.contains(PollFlags::POLLHUP))
    }

    #[test]
    fn what_one_message_may_bring_is_taken_and_of_more_nothing_stays() {
        let (told, descriptors) = sent(CARRIED_AT_ONCE);
        assert_eq!(descriptors.len(), CARRIED_AT_ONCE);
        assert!(!is_closed(&told, 0));
        drop(descriptors);
        assert!(is_closed(&told, 20_000));
        // The space is rounded up, for one or two more.
        for more in [CARRIED_AT_ONCE + 8, 253] {
            let (told, descriptors) = sent(more);
            assert!(descriptors.is_empty(), "{more}");
            assert!(is_closed(&told, 20_000), "{more}");
        }
    }
}
