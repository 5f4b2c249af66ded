//! Log lines: to `nuee.log`, and to standard error unless that is the same file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::instance::Instance;

/// What is logged when `NUEE_LOG` does not say.
const DEFAULT_FILTER: &str = "info,kube_client=warn,kube_runtime=error,hyper=warn,h2=warn,rustls=warn";

/// Starts logging.
pub fn start(instance: &Instance) -> Result<()> {
    let path = instance.path("nuee.log");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let also_stderr = !is_stderr(&file);
    let filter = EnvFilter::try_from_env("NUEE_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Sink { file: Arc::new(file), also_stderr })
        .init();
    Ok(())
}

fn is_stderr(file: &File) -> bool {
    let (Ok(file), Ok(stderr)) = (file.metadata(), std::fs::metadata("/proc/self/fd/2")) else { return false };
    (file.dev(), file.ino()) == (stderr.dev(), stderr.ino())
}

#[derive(Clone)]
struct Sink {
    file: Arc<File>,
    also_stderr: bool,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.also_stderr {
            // A terminal that is gone must not end the daemon.
            let _written = io::stderr().write_all(data);
        }
        (&*self.file).write_all(data)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.file).flush()
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
