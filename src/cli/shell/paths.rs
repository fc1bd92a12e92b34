//! Where the shell is in the cluster, and what a path means there.

/// The absolute path that `typed` means in the directory `at`: without `.`, `..` and repeated slashes. A slash at the
/// end stays: it says that a directory is meant.
pub(super) fn resolve(at: &str, typed: &str) -> String {
    let whole = match typed.starts_with('/') {
        true => typed.to_string(),
        false => format!("{at}/{typed}"),
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let end = match typed.ends_with('/') && !parts.is_empty() {
        true => "/",
        false => "",
    };
    format!("/{}{end}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_relative_to_where_the_shell_is() {
        for (at, typed, meant) in [
            ("/", "a", "/a"),
            ("/a", "b/c", "/a/b/c"),
            ("/a", "b/", "/a/b/"),
            ("/a", "/b//c/./", "/b/c/"),
            ("/a/b", "..", "/a"),
            ("/a/b", "../..", "/"),
            ("/a", "../../../x", "/x"),
            ("/a", "../", "/"),
            ("/a", ".", "/a"),
            ("/a", "", "/a"),
            ("/", "/", "/"),
            ("/a", "...", "/a/..."),
        ] {
            assert_eq!(resolve(at, typed), meant, "{typed} in {at}");
        }
    }
}
