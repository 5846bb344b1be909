//! Escapes the strings in the log: JSON in printable ASCII only.
//!
//! JSON itself requires less: it allows C1 control characters, DEL, marks that change the direction of text, line separators and
//! invisible characters unescaped. A terminal, a pager or an editor that shows the log obeys them, so a path could hide or repaint
//! other lines. Which characters do that changes with each version of Unicode, and ASCII does not.

use std::io::Write;

/// Adds `text` as a JSON string, which decodes to `text`.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    push_escaped(out, text);
    out.push(b'"');
}

/// Adds what stands between the quotes of a JSON string.
pub(super) fn push_escaped(out: &mut Vec<u8>, text: &str) {
    // Every byte is looked at, whatever the first is: that can be done for many at once.
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\');
    if text.bytes().fold(true, |all, byte| all & plain(byte)) {
        out.extend_from_slice(text.as_bytes());
    } else {
        push_character_by_character(out, text);
    }
}

/// The most bytes that a character takes in the log: two UTF-16 units, each as `\uXXXX`.
const LONGEST: usize = 12;

/// The longest beginning of `text` that takes at most `most` bytes in the log.
pub fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most / LONGEST {
        return text;
    }
    let mut length = 0;
    for (start, character) in text.char_indices() {
        length += match character {
            '"' | '\\' | '\n' | '\r' | '\t' => 2,
            ' '..='~' => 1,
            _ => 6 * character.len_utf16(),
        };
        if length > most {
            return &text[..start];
        }
    }
    text
}

#[cold]
fn push_character_by_character(out: &mut Vec<u8>, text: &str) {
    for character in text.chars() {
        match character {
            '"' => out.extend_from_slice(br#"\""#),
            '\\' => out.extend_from_slice(br"\\"),
            '\n' => out.extend_from_slice(br"\n"),
            '\r' => out.extend_from_slice(br"\r"),
            '\t' => out.extend_from_slice(br"\t"),
            ' '..='~' => out.extend(u8::try_from(character)),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to memory can't fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_decodes_to_itself_and_only_printable_ascii_is_written() {
        for character in '\0'..=char::MAX {
            let text = format!("a{character}b");
            let mut out = Vec::new();
            push_string(&mut out, &text);
            assert!(out.iter().all(|byte| (b' '..=b'~').contains(byte)), "{character:?}");
            // All of them take a while in a debug build, and what is not ASCII is written by one rule.
            if character < '\u{3000}' || (character as u32).is_multiple_of(97) {
                let decoded: String = serde_json::from_slice(&out).unwrap();
                assert_eq!(decoded, text, "{character:?}");
            }
        }
    }

    #[test]
    fn a_text_is_cut_where_its_escaped_form_would_be_too_long() {
        for character in ["a", "\"", "\n", "\u{1}", "\u{e4}", "\u{1f980}"] {
            let text = character.repeat(100);
            for most in 0..1300 {
                let mut out = Vec::new();
                push_escaped(&mut out, cut(&text, most));
                assert!(out.len() <= most, "{character:?}: {} of {most}", out.len());
                let whole = out.len() + LONGEST > most || cut(&text, most) == text;
                assert!(whole, "{character:?}: {} of {most}", out.len());
            }
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let mut out = Vec::new();
        push_string(
            &mut out,
            "/\u{9b}2J\u{7f}\u{1b}[31m\u{202e}\u{2066}\u{200b}\u{feff}\u{ad}\u{e0041}\u{2028}\"\\\n",
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            r#""/\u009b2J\u007f\u001b[31m\u202e\u2066\u200b\ufeff\u00ad\udb40\udc41\u2028\"\\\n""#
        );
    }
}
