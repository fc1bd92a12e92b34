//! The client and operator command; everything it does is in [`minfs::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    minfs::cli::main()
}
