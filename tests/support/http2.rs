//! HTTP/2 frames as bytes, right and wrong, for tests that are no well-behaved client (RFC 9113).

/// What a client says first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame, whatever it says.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// An empty SETTINGS frame.
pub fn settings() -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[])
}

/// SETTINGS that let the server send as much as it likes on a stream, and WINDOW_UPDATE for all of them.
pub fn all_windows_open() -> Vec<u8> {
    let mut out = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    out.extend(frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()));
    out
}

/// The header block of a call (RFC 7541: from the static table, or literal and not indexed).
pub fn header_block(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    let text = |block: &mut Vec<u8>, name: &[u8], value: &str| {
        block.extend_from_slice(name);
        block.push(
            u8::try_from(value.len())
                .ok()
                .filter(|length| *length < 127)
                .unwrap(),
        );
        block.extend_from_slice(value.as_bytes());
    };
    text(&mut block, &[0x04], path);
    text(&mut block, &[0x01], "localhost");
    text(&mut block, &[0x0f, 0x10], "application/grpc");
    text(&mut block, b"\x00\x02te", "trailers");
    block
}

/// A whole call on a stream.
pub fn call(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let mut out = frame(HEADERS, END_HEADERS, stream, &header_block(path));
    out.extend(frame(DATA, END_STREAM, stream, &framed(message)));
    out
}

/// A message as gRPC frames it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[0][..], &length.to_be_bytes(), message].concat()
}
