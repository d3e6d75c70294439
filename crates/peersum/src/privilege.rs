//! Whether the environment is this process's own to follow.

/// Whether this process gained rights when it was executed (set-uid, set-gid, file capabilities):
/// then its caller, who has fewer, has set the environment.
pub(crate) fn gained_rights() -> bool {
    // SAFETY: getauxval reads the process's auxiliary vector and has no precondition.
    let secure = unsafe { libc::getauxval(libc::AT_SECURE) } != 0;
    secure
        || rustix::process::getuid() != rustix::process::geteuid()
        || rustix::process::getgid() != rustix::process::getegid()
}
