//! Ranks: threads of this process, or processes of this program.

mod meeting;
mod processes;
mod threads;

pub(crate) use processes::{
    Heard, ParentArgs, RankProcess, listen, meeting_directory, rank_command, say,
};
pub(crate) use threads::{Member, PATIENCE, Peers, run_threads};
