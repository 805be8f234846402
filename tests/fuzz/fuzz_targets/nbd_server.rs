//! A server of NBD that sends anything, at times as it should: negotiation comes to a disk that can be or to an error, and what was asked is answered
//! once, with all the data that it should have, or not at all.
#![no_main]

use libfuzzer_sys::fuzz_target;
use paddock_fuzz::Input;
use paddock_storage::nbd::fuzzing::{OFFSET, READS, negotiate, receive};

/// Mostly a number that fits; else anything.
fn number(input: &mut Input, fitting: &[u32]) -> u32 {
    match usize::from(input.byte()) {
        place if place < 224 => fitting[place % fitting.len()],
        _ => u32::from_le_bytes(input.bytes()),
    }
}

/// The greeting, replies to options, and whatever is left of the input.
fn negotiation(input: &mut Input) -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    bytes[17] ^= input.byte() & 7;
    for _ in 0..input.byte() % 40 {
        bytes.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        for fitting in [&[7, 8, 1][..], &[1, 3, 3, 3, (1 << 31) + 1, (1 << 31) + 6]] {
            bytes.extend(number(input, fitting).to_be_bytes());
        }
        let mut payload = Vec::new();
        for _ in 0..input.byte() % 8 {
            let part = number(input, &[0, 3, 1, 1 << 16, 512, 4096, 1 << 20, 1 << 25]);
            // Kinds of information have two bytes, all else four or more.
            let from = if payload.is_empty() { 2 } else { 0 };
            payload.extend_from_slice(&part.to_be_bytes()[from..]);
        }
        let length = number(input, &[payload.len() as u32]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(payload);
    }
    bytes
}

/// Replies, simple ones and chunks.
fn replies(input: &mut Input) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !input.is_empty() && bytes.len() < 1 << 17 {
        let cookie = u64::from(number(input, &[1, 2, 3, 4, 5, 6, 7]));
        let asked = cookie.checked_sub(1).and_then(|i| READS.get(i as usize));
        let length = asked.copied().unwrap_or(0);
        if input.byte() % 3 == 0 {
            bytes.extend(0x6744_6698_u32.to_be_bytes());
            bytes.extend(number(input, &[0, 0, 0, 5, 28, 108]).to_be_bytes());
            bytes.extend(cookie.to_be_bytes());
            bytes.resize(bytes.len() + length as usize, 0);
            continue;
        }
        let kind = number(input, &[0, 1, 1, 2, 0x8001, 0x8002]) as u16;
        let start = number(input, &[0, 0, length / 2, length]);
        let size = number(input, &[length, length / 2, 1]) % 10_000;
        let place = OFFSET.wrapping_add(u64::from(start));
        let payload = match kind {
            1 => [&place.to_be_bytes()[..], &vec![1; size as usize]].concat(),
            2 => [&place.to_be_bytes()[..], &size.to_be_bytes()].concat(),
            kind if kind >= 0x8000 => vec![0, 0, 0, 5, 0, 0],
            _ => Vec::new(),
        };
        let length = number(input, &[payload.len() as u32]);
        bytes.extend(0x668e_33ef_u32.to_be_bytes());
        bytes.extend(u16::from(input.byte() % 4).to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(payload);
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    match input.byte() % 4 {
        0 => drop(negotiate(data)),
        1 => drop(negotiate(&negotiation(&mut input))),
        way => {
            let piece = 1 + usize::from(input.byte()) * 17;
            let answered = receive(&replies(&mut input), way == 2, piece);
            assert!(answered <= READS.len() + 3);
        }
    }
});
