//! Ranks: threads of this process, or processes of this program.

mod meeting;
mod processes;
mod threads;

pub(crate) use processes::{
    ChildProcess, Heard, RankArgs, listen, meeting_directory, rank_command, say, this_program,
};
pub(crate) use threads::{Member, PATIENCE, Peers, run_threads};
