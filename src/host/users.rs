//! The numbers of this host's users, as `/etc/passwd` has them.
//!
//! Users of another service (LDAP, `DynamicUser=`) are not found here: asking for them would load
//! that service's code into a program that runs as root on each plug.

use std::fs::File;
use std::io::{self, Read};

use crate::root::Root;

/// The most that is read of the file.
const MAX_BYTES: u64 = 1024 * 1024;

/// The number of the user of that name. `None` if there is none.
///
/// # Errors
///
/// The file cannot be read.
pub fn uid(root: &Root, name: &str) -> io::Result<Option<u32>> {
    let mut bytes = Vec::new();
    File::open(root.path("/etc/passwd"))?.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(find(&String::from_utf8_lossy(&bytes), name))
}

/// Reads `name:password:number:…` (passwd(5)); of two lines with that name the first one counts.
fn find(text: &str, name: &str) -> Option<u32> {
    let mut users = text.lines().map(|line| line.split(':'));
    let mut user = users.find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
    user.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_whole_name() {
        let text = "root:x:0:0:root:/root:/bin/bash\nlibvirt-qemu:x:64055:103::/:/bin/false\n\
                    broken\nodd:x:many:1::/:\n";
        assert_eq!(find(text, "libvirt-qemu"), Some(64055));
        assert_eq!(find(text, "root"), Some(0));
        for none in ["libvirt", "qemu", "broken", "odd", "", "x"] {
            assert_eq!(find(text, none), None, "{none}");
        }
    }
}
