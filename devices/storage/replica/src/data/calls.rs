//! System calls one after the other, where the host has no io_uring for us. What is received comes last: it may block.
#![expect(unsafe_code, reason = "system calls on raw memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use super::{Call, Driver};

/// Calls that were not made yet.
#[derive(Debug)]
pub(super) struct Calls {
    socket: RawFd,
    queue: VecDeque<(u64, Call)>,
    receive: Option<(u64, Call)>,
    /// Made, and not told yet.
    done: Vec<(u64, i32)>,
}

impl Calls {
    /// For a connection.
    pub(super) fn new(socket: RawFd) -> Self {
        Self {
            socket,
            queue: VecDeque::new(),
            receive: None,
            done: Vec::new(),
        }
    }

    fn make(&self, call: Call) -> i32 {
        loop {
            // SAFETY: whoever pushed the call keeps its memory until it has completed.
            let result = unsafe {
                match call {
                    Call::Receive(memory, length) => {
                        libc::recv(self.socket, memory.cast(), length as usize, 0)
                    }
                    Call::Send(message) => libc::sendmsg(self.socket, message, libc::MSG_NOSIGNAL),
                    Call::Read(file, memory, length, offset) => {
                        libc::pread(file, memory.cast(), length as usize, offset.cast_signed())
                    }
                    Call::Write(file, memory, length, offset) => {
                        libc::pwrite(file, memory.cast(), length as usize, offset.cast_signed())
                    }
                }
            };
            if result >= 0 {
                return i32::try_from(result).unwrap_or(i32::MAX);
            }
            match io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                errno => return -errno.unwrap_or(libc::EIO),
            }
        }
    }
}

impl Driver for Calls {
    fn push(&mut self, token: u64, call: Call) {
        match call {
            Call::Receive(..) => self.receive = Some((token, call)),
            _ => self.queue.push_back((token, call)),
        }
    }

    fn submit(&mut self) {
        while let Some((token, call)) = self.queue.pop_front() {
            let result = self.make(call);
            self.done.push((token, result));
        }
    }

    fn wait(&mut self, want: usize, done: &mut Vec<(u64, i32)>) -> io::Result<()> {
        self.submit();
        if self.done.len() < want {
            if let Some((token, call)) = self.receive.take() {
                let result = self.make(call);
                self.done.push((token, result));
            }
        }
        done.append(&mut self.done);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.queue.len() + self.done.len() + usize::from(self.receive.is_some())
    }
    fn failed(&self) -> Option<i32> {
        None
    }
}
