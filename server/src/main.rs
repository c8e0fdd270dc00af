use std::process::ExitCode;

use clap::Parser;
use turnwire::cli::{Cli, Command};
use turnwire::start::{self, StartError};
use turnwire::telemetry;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => {
            telemetry::init();
            start::serve(*args)
        }
        Command::Bench(bench) => start::bench(bench),
        Command::Check(args) => match start::check(*args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Version => {
            println!("turnwire {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(StartError::Usage(problem)) => {
            eprintln!("turnwire: {problem}");
            ExitCode::from(2)
        }
        Err(StartError::Failed(error)) => {
            eprintln!("turnwire: {error:#}");
            ExitCode::FAILURE
        }
    }
}
