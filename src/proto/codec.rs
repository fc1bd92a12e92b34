//! The codec of the contract's services: prost's, but for what it says to bytes that do not decode.
//!
//! prost's own codec answers them with `INTERNAL`, which clients take for the server's trouble and
//! retry. A request that is not what the contract says is its sender's mistake: `INVALID_ARGUMENT`,
//! naming the text that is not UTF-8 where that is what is wrong (in every request it is the path).
//! The generated code names [`ContractCodec`]; see `build.rs`.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

/// Protobuf by prost, with the contract's answer to malformed requests.
#[derive(Clone, Copy, Debug)]
pub struct ContractCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ContractCodec<T, U> {
    fn default() -> Self {
        ContractCodec(PhantomData)
    }
}

impl<T, U> Codec for ContractCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ContractDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ContractDecoder(PhantomData)
    }
}

/// The decoder of [`ContractCodec`].
#[derive(Clone, Copy, Debug)]
pub struct ContractDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for ContractDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // Takes the bytes over without copying them.
        let bytes = buf.copy_to_bytes(buf.remaining());
        match U::decode(bytes.clone()) {
            Ok(message) => Ok(Some(message)),
            Err(error) => Err(refused(bytes, &error)),
        }
    }
}

/// What the sender of a message that does not decode is told.
pub(crate) fn refused(message: Bytes, error: &prost::DecodeError) -> Status {
    Status::invalid_argument(match first_text(message) {
        Some(text) if std::str::from_utf8(&text).is_err() => format!("not UTF-8: {}", rendered(&text)),
        Some(_) | None => format!("malformed request: {error}"),
    })
}

/// The bytes of field 1, if it is there and has bytes.
fn first_text(mut message: Bytes) -> Option<Bytes> {
    let mut found = None;
    while message.has_remaining() {
        let (tag, wire_type) = decode_key(&mut message).ok()?;
        if tag == 1 && wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            if length > message.remaining() {
                return None;
            }
            // As protobuf has it, the last one counts; but a bad one before it fails too.
            let text = message.split_to(length);
            if std::str::from_utf8(&text).is_err() {
                return Some(text);
            }
            found = Some(text);
        } else {
            skip_field(wire_type, tag, &mut message, DecodeContext::default()).ok()?;
        }
    }
    found
}

/// Escaped, and cut when it is long: a status travels in a header.
fn rendered(text: &[u8]) -> String {
    const SHOWN: usize = 256;
    let shown = &text[..text.len().min(SHOWN)];
    let escaped = String::from_utf8_lossy(shown).escape_debug().to_string();
    match text.len() > SHOWN {
        true => format!("{escaped}… ({} bytes)", text.len()),
        false => escaped,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::proto::dfs::{CreateNodeRequest, DeleteNodeRequest};

    fn refusal<M: Message + Default + std::fmt::Debug>(bytes: &[u8]) -> Status {
        let error = M::decode(bytes).unwrap_err();
        let status = refused(Bytes::copy_from_slice(bytes), &error);
        assert_eq!(status.code(), Code::InvalidArgument);
        status
    }

    #[test]
    fn names_the_path_that_is_not_utf8() {
        let status = refusal::<CreateNodeRequest>(b"\x0a\x05/a/\xffb");
        assert_eq!(status.message(), "not UTF-8: /a/\u{fffd}b");
    }

    #[test]
    fn finds_the_path_behind_other_fields() {
        let status = refusal::<DeleteNodeRequest>(b"\x10\x01\x0a\x02/\xc3");
        assert_eq!(status.message(), "not UTF-8: /\u{fffd}");
    }

    #[test]
    fn a_long_path_is_cut() {
        let mut bytes = vec![0x0a, 0xff, 0x1f];
        bytes.extend(std::iter::repeat_n(0xff, 0xfff));
        let status = refusal::<CreateNodeRequest>(&bytes);
        assert!(
            status.message().ends_with("… (4095 bytes)"),
            "{}",
            status.message()
        );
        assert!(status.message().len() < 1000);
    }

    #[test]
    fn other_nonsense_is_the_senders_mistake_too() {
        for bytes in [
            &b"\x0a\x09/a"[..],
            b"\xff",
            b"\x0b",
            b"\x0a\x02/a\x08",
            b"\x08\x01",
        ] {
            let status = refusal::<CreateNodeRequest>(bytes);
            assert!(
                status.message().starts_with("malformed request: "),
                "{}",
                status.message()
            );
        }
    }
}
