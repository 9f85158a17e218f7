//! The program itself.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn manager(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_d7y-manager"));
    for listen in ["rest", "grpc", "metrics"] {
        command.arg("--set").arg(format!("{listen}.listen=127.0.0.1:0"));
    }
    command.arg("--set").arg(format!("directory={}", directory.display()));
    command.args(arguments).env_clear();
    command
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[test]
fn faults_are_told_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("grpc.listen={}", taken.local_addr().unwrap());
    let no_directory = format!("directory={}", directory.path().join("file/sub").display());
    std::fs::write(directory.path().join("file"), "").unwrap();
    let table: [(&[&str], i32, &[&str]); 6] = [
        (&["--check-config"], 0, &["ok"]),
        (
            &["--check-config", "--set", "keepAlive.interval=0s", "--set", "secrets.key=x"],
            78,
            &["2 fault(s)", "keepAlive.interval", "secrets.key", "64 hex digits"],
        ),
        (&["--set", "rest.port=1"], 78, &["rest.port"]),
        (&["--set", &taken], 69, &["grpc.listen", "taken"]),
        (&["--set", &no_directory], 73, &["cannot use the directory", "file/sub"]),
        (
            &["--print-config", "--set", "initialRootPassword=hunter2hunter2"],
            0,
            &["initialRootPassword: \"***\""],
        ),
    ];
    for (arguments, code, parts) in table {
        let output = manager(directory.path(), arguments).output().unwrap();
        let told = text(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        for part in parts {
            assert!(told.contains(part), "{arguments:?}: {told:?} lacks {part:?}");
        }
        assert!(!told.contains("hunter2"), "{told}");
    }
}

struct Run {
    child: Child,
    log: Vec<String>,
}

impl Run {
    /// Starts the program and stops it in order once it is ready. Returns what it printed.
    fn to_its_end(directory: &Path) -> String {
        let child = manager(directory, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut run = Self { child, log: Vec::new() };
        let mut lines = BufReader::new(run.child.stderr.take().unwrap()).lines().map(Result::unwrap);
        run.log.extend(lines.by_ref().take_while(|line| !line.contains("is ready")));
        let id = run.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        run.log.extend(lines);
        assert_eq!(run.child.wait().unwrap().code(), Some(0), "{:?}", run.log);
        let mut printed = String::new();
        run.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert!(!printed.is_empty() || run.log.iter().all(|line| !line.contains("password")));
        printed
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

#[test]
fn the_first_password_is_printed_once_and_files_are_the_owners() {
    let directory = tempfile::tempdir().unwrap();
    let printed = Run::to_its_end(directory.path());
    assert!(printed.contains("The first user is root, with the password "), "{printed}");
    assert_eq!(Run::to_its_end(directory.path()), "", "a second start makes no user");
    let mode = std::fs::metadata(directory.path().join("secrets.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_lost_root_password_is_replaced_while_the_manager_runs_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let reset = || {
        let output = manager(directory.path(), &["--reset-root-password"]).output().unwrap();
        (output.status.code(), text(&output))
    };
    let (code, told) = reset();
    assert!(code == Some(1) && told.contains("there is no database"), "{told}");
    assert!(!directory.path().join("manager.db").exists(), "none is made");
    Run::to_its_end(directory.path());
    let (code, told) = reset();
    assert!(code == Some(0) && told.contains("The password of root is now "), "{told}");

    let child = manager(directory.path(), &[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut run = Run { child, log: Vec::new() };
    let mut lines = BufReader::new(run.child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let rest = lines.find(|line| line.contains("listening")).expect("it listens");
    let rest = rest.split("rest=").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    run.log.extend(lines.by_ref().take_while(|line| !line.contains("is ready")));
    let (code, told) = reset();
    assert_eq!(code, Some(0), "{told}");
    let password = told.split(" is now ").nth(1).unwrap().split(". ").next().unwrap();
    let login = BASE64_STANDARD.encode(format!("root:{password}"));
    let mut socket = std::net::TcpStream::connect(rest).unwrap();
    let request = format!("GET /api/v1/users HTTP/1.0\r\nHost: d7y\r\nAuthorization: Basic {login}\r\n\r\n");
    std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
}
