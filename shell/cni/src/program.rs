//! Runs a plugin: no shell, an environment of its own, limits on time and on what is read.

use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use knarr_cni_protocol::failure;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// Where plugins find iptables and the like.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The longest answer, in bytes.
const MAX_OUTPUT: u64 = 1 << 20;

/// A plugin and all that it started; killed unless it came to its end.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        // Its leader was not waited for, so that the number is still its own.
        if let Some(group) = self.0 {
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

/// Its standard output, or what it says about its failure.
pub(crate) async fn run(
    program: &Path,
    environment: Vec<(&'static str, String)>,
    input: &[u8],
    patience: Duration,
) -> Result<Vec<u8>, String> {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).envs(environment).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.kill_on_drop(true).spawn();
    let mut child = child.map_err(|error| format!("{}: {error}", program.display()))?;
    let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut group = Group(id);
    let ended = tokio::time::timeout(patience, talk(&mut child, input)).await;
    let (stdout, stderr, status) =
        ended.map_err(|_| format!("it did not end within {} s", patience.as_secs()))??;
    group.0 = None;
    match status.success() {
        true => Ok(stdout),
        false => Err(failure(&stdout, &stderr, &status.to_string())),
    }
}

async fn talk(child: &mut Child, input: &[u8]) -> Result<(Vec<u8>, Vec<u8>, ExitStatus), String> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async {
        // Who does not listen may answer all the same.
        if let Some(mut stdin) = stdin {
            stdin.write_all(input).await.ok();
        }
        Ok(())
    };
    let ((), stdout, stderr) = tokio::try_join!(tell, read(stdout), read(stderr))?;
    let status = child.wait().await.map_err(|error| error.to_string())?;
    Ok((stdout, stderr, status))
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let Some(from) = from else { return Ok(bytes) };
    let read = from.take(MAX_OUTPUT + 1).read_to_end(&mut bytes).await;
    read.map_err(|error| error.to_string())?;
    match bytes.len() as u64 > MAX_OUTPUT {
        true => Err(format!("it says more than {MAX_OUTPUT} bytes")),
        false => Ok(bytes),
    }
}
