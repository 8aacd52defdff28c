//! Python with packages from PyPI, pinned by hash.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use routebalance_cli::setup::target_dir;

/// A Python, and where it finds packages beside its own.
pub(crate) struct Python {
    program: PathBuf,
    packages: Option<PathBuf>,
}

impl Python {
    /// A virtual environment that holds exactly what `requirements.txt` names; where Python has no `venv`, a folder of packages.
    /// They are installed below `target`, by the name.
    pub(crate) fn with(name: &str, directory_of_requirements: &Path) -> Result<Python, String> {
        let (directory, requirements) = (target_dir().join(name), directory_of_requirements.join("requirements.txt"));
        let (venv, packages, stamp) = (directory.join("venv"), directory.join("packages"), directory.join("installed"));
        let isolated = || Python { program: venv.join("bin/python"), packages: None };
        let beside = || Python { program: "python3".into(), packages: Some(packages.clone()) };
        let wanted = std::fs::read_to_string(&requirements).map_err(|e| e.to_string())?;
        if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(if isolated().program.is_file() { isolated() } else { beside() });
        }
        eprintln!("Installing what {name} needs from PyPI below {} ...", directory.display());
        std::fs::create_dir_all(&directory).map_err(|e| e.to_string())?;
        let has_venv = run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv)).is_ok();
        let python = if has_venv { isolated() } else { beside() };
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"];
        let mut pip = Command::new(&python.program);
        pip.args(install).arg(&requirements);
        if let Some(packages) = &python.packages {
            let _ = std::fs::remove_dir_all(&venv);
            pip.arg("--upgrade").arg("--target").arg(packages);
        }
        run(&mut pip).map_err(|e| format!("{e}\nThis test needs Python 3.11 or later with pip, and PyPI."))?;
        std::fs::write(stamp, wanted).map_err(|e| e.to_string())?;
        Ok(python)
    }

    /// Runs it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        if let Some(packages) = &self.packages {
            command.env("PYTHONPATH", packages);
        }
        command
    }
}

/// Runs a command; what it has said, where it fails.
pub(crate) fn run(command: &mut Command) -> Result<Output, String> {
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{command:?}: {}\n{}{}", output.status, said(&output.stdout), said(&output.stderr)))
}
