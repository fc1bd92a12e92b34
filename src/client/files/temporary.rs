//! A local file that is there when it is complete, and not before: written beside its place, then renamed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// How much of the final name goes into the temporary one, in bytes: names end at 255.
const NAME_KEPT: usize = 200;

/// A file beside its final place. Dropped before [`Temporary::persist`], it is removed.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    /// The final place, with links in it followed.
    place: PathBuf,
    persisted: bool,
}

impl Temporary {
    /// Makes an empty file, `.<name>.minfs-<random>`, beside `place`. A link is followed, as `cp` does.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::IsADirectory`] and [`io::ErrorKind::InvalidInput`] when something is at `place`
    /// that is no ordinary file and must not be replaced.
    pub(super) fn beside(place: &Path) -> io::Result<(Self, File)> {
        let place = match fs::metadata(place) {
            Ok(there) if there.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(there) if !there.is_file() => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "not an ordinary file",
                ));
            }
            Ok(_) => fs::canonicalize(place)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => place.to_path_buf(),
            Err(error) => return Err(error),
        };
        let name = place.file_name().map(OsStr::to_string_lossy).unwrap_or_default();
        let end = (0..=name.len().min(NAME_KEPT))
            .rev()
            .find(|end| name.is_char_boundary(*end));
        let name = &name[..end.unwrap_or(0)];
        let path = place.with_file_name(format!(".{name}.minfs-{:016x}", rand::random::<u64>()));
        let file = File::options().write(true).create_new(true).open(&path)?;
        let temporary = Self {
            path,
            place,
            persisted: false,
        };
        Ok((temporary, file))
    }

    /// Puts the file in its place, in one step. A file that is replaced leaves its permissions behind.
    /// Nothing is flushed to the disk: after a crash of the machine the file may have to be fetched again.
    ///
    /// # Errors
    /// The system's; the temporary file is gone then.
    pub(super) fn persist(mut self) -> io::Result<()> {
        if let Ok(there) = fs::metadata(&self.place) {
            fs::set_permissions(&self.path, there.permissions())?;
        }
        fs::rename(&self.path, &self.place)?;
        self.persisted = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.persisted
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::warn!("{} is left behind: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_file_appears_complete_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("f");
        let (temporary, mut file) = Temporary::beside(&place).unwrap();
        file.write_all(b"new").unwrap();
        assert!(!place.exists());
        assert!(names(directory.path())[0].starts_with(".f.minfs-"));
        drop(temporary);
        assert_eq!(names(directory.path()), [""; 0]);

        let (temporary, mut file) = Temporary::beside(&place).unwrap();
        file.write_all(b"new").unwrap();
        temporary.persist().unwrap();
        assert_eq!(fs::read(&place).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["f"]);
    }

    #[test]
    fn what_is_replaced_keeps_its_link_and_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let (real, link) = (directory.path().join("real"), directory.path().join("link"));
        fs::write(&real, b"old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        let (temporary, _) = Temporary::beside(&link).unwrap();
        temporary.persist().unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let kind = |place: &Path| Temporary::beside(place).unwrap_err().kind();
        assert_eq!(kind(directory.path()), io::ErrorKind::IsADirectory);
        assert_eq!(kind(Path::new("/dev/null")), io::ErrorKind::InvalidInput);
        assert_eq!(kind(&directory.path().join("no/f")), io::ErrorKind::NotFound);
        let long = directory.path().join("ü".repeat(127));
        Temporary::beside(&long).unwrap().0.persist().unwrap();
        assert!(long.exists());
    }
}
