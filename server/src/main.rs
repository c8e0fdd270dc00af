use std::process::ExitCode;

use clap::Parser;
use turnwire::cli::{Cli, Command};
use turnwire::start::{self, StartError};
use turnwire::telemetry;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => {
            telemetry::init();
            match start::serve(*args) {
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
        Command::Bench(bench) => match start::bench(bench) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("turnwire: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Version => {
            println!("turnwire {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}
