//! What becomes of an offer where a filter for system calls stands in the way.

use pm_core::transport::{Transport, TransportError};

use crate::Shm;

/// Makes this system call fail with `EPERM` in this thread, for as long as the thread lives.
#[expect(unsafe_code, reason = "filters have no safe face")]
fn refuse(call: libc::c_long) {
    let jump = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The number of the call is the first word of what a filter sees.
        jump(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, call as u32),
        jump(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        jump(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: Both take numbers, and the second a pointer to a program that lives until it returns. They change this thread alone.
    let set = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn what_a_filter_refuses_is_named() {
    for (call, name) in [(libc::SYS_memfd_create, "memfd_create"), (libc::SYS_futex, "futex")] {
        let offered = std::thread::spawn(move || {
            refuse(call);
            Shm::new().offer().map(drop)
        });
        match offered.join().expect("no panic") {
            Err(error @ TransportError::Unsupported { scheme: "shm", what }) => {
                assert_eq!(what, name);
                assert!(error.to_string().contains("choose another transport"), "{error}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(Shm::new().offer().is_ok(), "other threads have no filter");
}
