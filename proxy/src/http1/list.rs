//! Reads the values of fields that are lists (RFC 9110, section 5.6.1).

/// The members of a list that are not empty.
pub fn members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let members = list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    members.filter(|member| !member.is_empty())
}
