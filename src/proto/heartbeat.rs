//! A DataServer's beat, with its report of blocks as it is on the wire.
//!
//! A report may name 100,000 blocks and comes every few seconds, nearly always the same as before. To make
//! numbers of them is most of what such a beat costs, so that is left to whoever finds that it is another report
//! than the last. `build.rs` puts this message in the place of the generated one; `super::dfs` shows it with the
//! others.

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{DecodeContext, WireType, decode_varint, encode_key, encode_varint};
use prost::encoding::{encoded_len_varint, key_len, string, uint64};
use prost::{DecodeError, Message};
use xxhash_rust::xxh3::Xxh3Default;

/// `dfs_project.HeartbeatRequest` of `metaserver.proto`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeartbeatRequest {
    /// The DataServer's own name for itself.
    pub data_server_id: String,
    /// `host:port`, as it advertises itself.
    pub data_server_addr: String,
    /// How many blocks it says that it holds.
    pub block_count: u64,
    /// Bytes.
    pub free_space: u64,
    /// The blocks that it holds whole.
    pub block_ids_report: BlockIds,
    /// Bytes.
    pub total_capacity: u64,
    /// The blocks that it holds damaged.
    pub corrupt_block_ids: Vec<u64>,
}

/// By their tags, from 1 on; named when one does not decode.
const FIELDS: [&str; 7] = [
    "data_server_id",
    "data_server_addr",
    "block_count",
    "free_space",
    "block_ids_report",
    "total_capacity",
    "corrupt_block_ids",
];

impl Message for HeartbeatRequest {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.data_server_id.is_empty() {
            string::encode(1, &self.data_server_id, buf);
        }
        if !self.data_server_addr.is_empty() {
            string::encode(2, &self.data_server_addr, buf);
        }
        for (tag, number) in [(3, &self.block_count), (4, &self.free_space)] {
            if *number != 0 {
                uint64::encode(tag, number, buf);
            }
        }
        self.block_ids_report.encode(5, buf);
        if self.total_capacity != 0 {
            uint64::encode(6, &self.total_capacity, buf);
        }
        uint64::encode_packed(7, &self.corrupt_block_ids, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        let merged = match tag {
            1 => string::merge(wire_type, &mut self.data_server_id, buf, ctx),
            2 => string::merge(wire_type, &mut self.data_server_addr, buf, ctx),
            3 => uint64::merge(wire_type, &mut self.block_count, buf, ctx),
            4 => uint64::merge(wire_type, &mut self.free_space, buf, ctx),
            5 => self.block_ids_report.merge(wire_type, buf, ctx),
            6 => uint64::merge(wire_type, &mut self.total_capacity, buf, ctx),
            7 => uint64::merge_repeated(wire_type, &mut self.corrupt_block_ids, buf, ctx),
            _ => return prost::encoding::skip_field(wire_type, tag, buf, ctx),
        };
        merged.map_err(|mut error| {
            error.push("HeartbeatRequest", FIELDS[tag as usize - 1]);
            error
        })
    }

    fn encoded_len(&self) -> usize {
        let text = |tag, text: &String| match text.is_empty() {
            true => 0,
            false => string::encoded_len(tag, text),
        };
        let number = |tag, number: u64| match number {
            0 => 0,
            _ => uint64::encoded_len(tag, &number),
        };
        text(1, &self.data_server_id)
            + text(2, &self.data_server_addr)
            + number(3, self.block_count)
            + number(4, self.free_space)
            + self.block_ids_report.encoded_len(5)
            + number(6, self.total_capacity)
            + uint64::encoded_len_packed(7, &self.corrupt_block_ids)
    }

    fn clear(&mut self) {
        *self = HeartbeatRequest::default();
    }
}

/// A `repeated uint64` as it is on the wire. Equal are those whose numbers are the same bytes there, however the list
/// was split.
///
/// Invariant: both parts are whole varints of at most 64 bits.
#[derive(Clone, Debug, Default)]
pub struct BlockIds {
    /// The first packed list: part of the message that it came in, and usually all there is.
    packed: Bytes,
    /// What came behind it: a sender may split a list, or not pack it at all.
    more: Vec<u8>,
}

impl BlockIds {
    /// The numbers, in the order in which they were sent.
    pub fn numbers(&self) -> Vec<u64> {
        let ends = |bytes: &[u8]| bytes.iter().filter(|byte| **byte < 0x80).count();
        let mut numbers = Vec::with_capacity(ends(&self.packed) + ends(&self.more));
        for mut part in [&self.packed[..], &self.more] {
            while let Ok(number) = decode_varint(&mut part) {
                numbers.push(number);
            }
        }
        numbers
    }

    /// What stands for exactly these numbers in this order: two different lists have the same digest about once
    /// in 2¹²⁸ pairs, unless somebody looks for such a pair (xxh3 is no cryptographic hash).
    pub fn digest(&self) -> u128 {
        let mut hash = Xxh3Default::new();
        hash.update(&self.packed);
        hash.update(&self.more);
        hash.digest128()
    }

    fn len(&self) -> usize {
        self.packed.len() + self.more.len()
    }

    fn bytes(&self) -> impl Iterator<Item = &u8> {
        self.packed.iter().chain(&self.more)
    }

    fn encode(&self, tag: u32, buf: &mut impl BufMut) {
        if self.len() > 0 {
            encode_key(tag, WireType::LengthDelimited, buf);
            encode_varint(self.len() as u64, buf);
            buf.put_slice(&self.packed);
            buf.put_slice(&self.more);
        }
    }

    fn encoded_len(&self, tag: u32) -> usize {
        match self.len() {
            0 => 0,
            len => key_len(tag) + encoded_len_varint(len as u64) + len,
        }
    }

    fn merge(
        &mut self,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        if wire_type == WireType::LengthDelimited && self.len() == 0 {
            let mut packed = Bytes::new();
            prost::encoding::bytes::merge(wire_type, &mut packed, buf, ctx)?;
            check(&packed)?;
            self.packed = packed;
            return Ok(());
        }
        let mut numbers = Vec::new();
        uint64::merge_repeated(wire_type, &mut numbers, buf, ctx)?;
        for number in numbers {
            encode_varint(number, &mut self.more);
        }
        Ok(())
    }
}

impl PartialEq for BlockIds {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.bytes().eq(other.bytes())
    }
}

impl Eq for BlockIds {}

impl FromIterator<u64> for BlockIds {
    fn from_iter<I: IntoIterator<Item = u64>>(numbers: I) -> Self {
        let mut packed = Vec::new();
        for number in numbers {
            encode_varint(number, &mut packed);
        }
        BlockIds {
            packed: packed.into(),
            more: Vec::new(),
        }
    }
}

impl From<Vec<u64>> for BlockIds {
    fn from(numbers: Vec<u64>) -> Self {
        numbers.into_iter().collect()
    }
}

/// Whether these are whole varints of at most 64 bits.
fn check(mut bytes: &[u8]) -> Result<(), DecodeError> {
    // What is too long has at least nine bytes in a row that say that more follows. However these lie over words of
    // eight bytes, five of them lie at the end of one or at the beginning of the next. To look for that takes a
    // small part of the time of decoding, and numbers below 2³⁵ have no such five.
    const FIRST_FIVE: u64 = 0x80_8080_8080;
    const LAST_FIVE: u64 = FIRST_FIVE << 24;
    let may_be_long = |word: u64| word & FIRST_FIVE == FIRST_FIVE || word & LAST_FIVE == LAST_FIVE;
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last_word = [0; 8];
    last_word[..rest.len()].copy_from_slice(rest);
    let mut words = words.iter().chain([&last_word]);
    let cut_short = bytes.last().is_some_and(|last| *last >= 0x80);
    if cut_short || words.any(|word| may_be_long(u64::from_le_bytes(*word))) {
        while bytes.has_remaining() {
            decode_varint(&mut bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As prost generates it from `metaserver.proto`.
    #[derive(Clone, PartialEq, Message)]
    struct Generated {
        #[prost(string, tag = "1")]
        data_server_id: String,
        #[prost(string, tag = "2")]
        data_server_addr: String,
        #[prost(uint64, tag = "3")]
        block_count: u64,
        #[prost(uint64, tag = "4")]
        free_space: u64,
        #[prost(uint64, repeated, tag = "5")]
        block_ids_report: Vec<u64>,
        #[prost(uint64, tag = "6")]
        total_capacity: u64,
        #[prost(uint64, repeated, tag = "7")]
        corrupt_block_ids: Vec<u64>,
    }

    impl From<HeartbeatRequest> for Generated {
        fn from(beat: HeartbeatRequest) -> Self {
            Generated {
                data_server_id: beat.data_server_id,
                data_server_addr: beat.data_server_addr,
                block_count: beat.block_count,
                free_space: beat.free_space,
                block_ids_report: beat.block_ids_report.numbers(),
                total_capacity: beat.total_capacity,
                corrupt_block_ids: beat.corrupt_block_ids,
            }
        }
    }

    fn agree(bytes: &[u8]) {
        let ours = HeartbeatRequest::decode(bytes);
        match Generated::decode(bytes) {
            Ok(generated) => {
                let ours = ours.unwrap();
                let again = ours.encode_to_vec();
                assert_eq!(ours.encoded_len(), again.len());
                assert_eq!(Generated::decode(&again[..]).unwrap(), generated, "{bytes:02x?}");
                let once_more = HeartbeatRequest::decode(&again[..]).unwrap();
                assert_eq!(once_more, ours, "{bytes:02x?}");
                assert_eq!(
                    once_more.block_ids_report.digest(),
                    ours.block_ids_report.digest()
                );
                assert_eq!(Generated::from(ours), generated, "{bytes:02x?}");
            }
            Err(_) => assert!(ours.is_err(), "{bytes:02x?}"),
        }
    }

    /// The report in one packed list.
    fn packed(list: &[u8]) -> Vec<u8> {
        let mut message = vec![0x2a];
        encode_varint(list.len() as u64, &mut message);
        message.extend(list);
        message
    }

    #[test]
    fn a_list_may_be_split_and_need_not_be_packed() {
        for (message, numbers) in [
            (&b""[..], &[][..]),
            (b"\x28\x01\x28\xac\x02", &[1, 300]),
            (b"\x2a\x03\x01\xac\x02\x28\x07", &[1, 300, 7]),
            (b"\x28\x07\x2a\x03\x01\xac\x02", &[7, 1, 300]),
            (b"\x2a\x00\x2a\x01\x05\x2a\x02\x04\x03", &[5, 4, 3]),
        ] {
            let beat = HeartbeatRequest::decode(message).unwrap();
            assert_eq!(beat.block_ids_report.numbers(), numbers);
            agree(message);
        }
    }

    #[test]
    fn what_is_no_number_is_refused_wherever_it_stands() {
        let too_long = [&[0xff; 10][..], &[1]].concat();
        let too_large = [&[0xff; 9][..], &[2]].concat();
        let largest = [&[0xff; 9][..], &[1]].concat();
        for before in 0..20 {
            for behind in 0..20 {
                for (number, good) in [(&too_long, false), (&too_large, false), (&largest, true)] {
                    let list = [&vec![5; before][..], number, &vec![6; behind]].concat();
                    let message = packed(&list);
                    assert_eq!(
                        HeartbeatRequest::decode(&message[..]).is_ok(),
                        good,
                        "{list:02x?}"
                    );
                    agree(&message);
                }
            }
        }
        let cut_short = packed(&[1, 2, 0x80]);
        let error = HeartbeatRequest::decode(&cut_short[..]).unwrap_err().to_string();
        assert!(error.contains("HeartbeatRequest.block_ids_report"), "{error}");
        // A second list does not go on where the first broke off.
        agree(&[cut_short, packed(&[1])].concat());
    }

    #[test]
    fn a_digest_tells_lists_apart_and_knows_them_again() {
        let digest = |numbers: &[u64]| BlockIds::from(numbers.to_vec()).digest();
        assert_eq!(digest(&[1, 300]), digest(&[1, 300]));
        assert_ne!(digest(&[1, 300]), digest(&[300, 1]));
        assert_ne!(digest(&[1, 300]), digest(&[1, 300, 300]));
        assert_ne!(digest(&[]), digest(&[0]));
        let unpacked = HeartbeatRequest::decode(&b"\x28\x01\x28\xac\x02"[..]).unwrap();
        assert_eq!(unpacked.block_ids_report.digest(), digest(&[1, 300]));
    }

    proptest! {
        #[test]
        fn reads_and_writes_what_generated_code_does(
            id in ".{0,3}", addr in ".{0,3}",
            count in any::<u64>(), free in 0..3u64, total in 0..3u64,
            shift in prop::collection::vec((any::<u64>(), 0..64u32), 0..20),
            corrupt in prop::collection::vec(any::<u64>(), 0..3),
        ) {
            let generated = Generated {
                data_server_id: id,
                data_server_addr: addr,
                block_count: count,
                free_space: free,
                block_ids_report: shift.iter().map(|(number, by)| number >> by).collect(),
                total_capacity: total,
                corrupt_block_ids: corrupt,
            };
            let bytes = generated.encode_to_vec();
            let ours = HeartbeatRequest::decode(&bytes[..]).unwrap();
            prop_assert_eq!(ours.encode_to_vec(), bytes);
            prop_assert_eq!(Generated::from(ours), generated);
        }

        #[test]
        fn refuses_what_generated_code_refuses(
            list in prop::collection::vec(prop_oneof![Just(0xffu8), Just(0x80), any::<u8>()], 0..40),
            rest in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            let mut message = packed(&list);
            message.extend(rest);
            agree(&message);
        }
    }
}
