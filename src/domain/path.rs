//! What a path is: absolute, clean, and within bounds.

use std::fmt;

use super::command::Refusal;

/// A path after cleaning: `/`, or `/a/b` with no empty, `.` or `..` part and no trailing slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CleanPath(Box<str>);

/// The longest path, in bytes, before and after cleaning.
pub const MAX_PATH_BYTES: usize = 4096;

/// The longest part of a path, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

impl CleanPath {
    /// The root directory.
    pub fn root() -> Self {
        CleanPath("/".into())
    }

    /// Cleans a path as a client sent it: `/a//b/` and `/a/./b` are `/a/b`, `/a/../b` is `/b`, and
    /// `..` above the root is the root.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the path, when it is empty or relative, holds a NUL, is longer than
    /// [`MAX_PATH_BYTES`] or has a part longer than [`MAX_NAME_BYTES`].
    pub fn parse(raw: &str) -> Result<Self, Refusal> {
        let invalid = |why: &str| Err(Refusal::invalid_argument(format!("{why}: {}", abbreviated(raw))));
        if raw.is_empty() {
            return Err(Refusal::invalid_argument("path is empty: \"\""));
        }
        if !raw.starts_with('/') {
            return invalid("path is not absolute");
        }
        if raw.len() > MAX_PATH_BYTES {
            return invalid("path is longer than 4096 bytes");
        }
        if raw.contains('\0') {
            return invalid("path contains a NUL");
        }
        let mut parts: Vec<&str> = Vec::new();
        for part in raw.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop();
                }
                name if name.len() > MAX_NAME_BYTES => return invalid("path has a part over 255 bytes"),
                name => parts.push(name),
            }
        }
        Ok(CleanPath(format!("/{}", parts.join("/")).into()))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.len() == 1
    }

    /// Its parts, from the root down; none for the root.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|part| !part.is_empty())
    }

    /// The directory it lies in and its name there; `None` for the root.
    pub fn split_last(&self) -> Option<(CleanPath, &str)> {
        if self.is_root() {
            return None;
        }
        let (parent, name) = self.0.rsplit_once('/')?;
        let parent = if parent.is_empty() {
            CleanPath::root()
        } else {
            CleanPath(parent.into())
        };
        Some((parent, name))
    }

    /// The path of the child called `name`, which must be a single clean part.
    pub fn child(&self, name: &str) -> CleanPath {
        if self.is_root() {
            CleanPath(format!("/{name}").into())
        } else {
            CleanPath(format!("{}/{name}", self.0).into())
        }
    }
}

impl fmt::Display for CleanPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CleanPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The path as an error names it: escaped, and cut when it is long (gRPC carries messages in
/// headers, which clients limit to a few KiB).
fn abbreviated(raw: &str) -> String {
    const SHOWN: usize = 256;
    if raw.len() <= SHOWN {
        return raw.escape_debug().to_string();
    }
    let mut end = SHOWN;
    while !raw.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}… ({} bytes)", raw[..end].escape_debug(), raw.len())
}

#[cfg(test)]
mod tests {
    use super::super::command::RefusalKind;
    use super::*;

    fn clean(raw: &str) -> String {
        CleanPath::parse(raw).unwrap().to_string()
    }

    #[test]
    fn cleans() {
        for (raw, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/..", "/"),
            ("/../../x", "/x"),
            ("/a//b/", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b/", "/b"),
            ("/a/b/../../c/.", "/c"),
            ("/...", "/..."),
            ("/ä/ö", "/ä/ö"),
        ] {
            assert_eq!(clean(raw), expected, "{raw}");
            assert_eq!(clean(expected), expected, "cleaning twice changes nothing");
        }
    }

    #[test]
    fn refuses_and_names_the_path() {
        let long_name = format!("/a/{}", "x".repeat(256));
        let long_path = format!("/{}", "ab/".repeat(1366));
        for (raw, named) in [
            ("", "\"\""),
            ("a/b", "a/b"),
            ("./a", "./a"),
            ("/a\0b", "/a\\0b"),
            (long_name.as_str(), "/a/xxx"),
            (long_path.as_str(), "/ab/ab/"),
        ] {
            let refusal = CleanPath::parse(raw).unwrap_err();
            assert_eq!(refusal.kind, RefusalKind::InvalidArgument);
            assert!(
                refusal.message.contains(named),
                "{} names {named}",
                refusal.message
            );
            assert!(refusal.message.len() < 1024);
        }
    }

    #[test]
    fn bounds_are_inclusive() {
        assert!(CleanPath::parse(&format!("/{}", "x".repeat(255))).is_ok());
        let longest = format!("/{}", "x/".repeat(2047)) + "y";
        assert_eq!(longest.len(), 4096);
        assert!(CleanPath::parse(&longest).is_ok());
    }

    #[test]
    fn splits() {
        let path = CleanPath::parse("/a/b").unwrap();
        assert_eq!(path.names().collect::<Vec<_>>(), ["a", "b"]);
        let (parent, name) = path.split_last().unwrap();
        assert_eq!((parent.as_str(), name), ("/a", "b"));
        let (parent, name) = parent.split_last().unwrap();
        assert_eq!((parent.as_str(), name), ("/", "a"));
        assert!(parent.split_last().is_none());
        assert_eq!(parent.child("x").as_str(), "/x");
        assert_eq!(path.child("x").as_str(), "/a/b/x");
        assert_eq!(CleanPath::root().names().count(), 0);
    }
}
