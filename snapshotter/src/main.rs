use std::process::ExitCode;

use d7y_fuse::process::{Protection, protect_from_reclaim};

fn main() -> ExitCode {
    let protection = protect_from_reclaim();
    for (what, refused) in
        [("PR_SET_IO_FLUSHER", &protection.io_flusher), ("oom_score_adj", &protection.oom_score)]
    {
        if let Protection::Refused(error) = refused {
            eprintln!("d7y-snapshotter: {what} is refused ({error}): reads may stall when memory is short");
        }
    }
    d7y_snapshotter::DAEMON.main(d7y_snapshotter::start)
}
