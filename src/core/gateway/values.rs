//! Lists and structs in the form in which proxy-wasm hands them over: the number of pairs, their lengths, and each key and value with a
//! zero byte. A list has keys alone.

/// The texts of a list as the host gives it: in its form, or one text with commas.
pub fn listed(bytes: &[u8]) -> Vec<String> {
    let keys = |pairs: Vec<(String, Vec<u8>)>| pairs.into_iter().map(|(key, _)| key).collect();
    pairs(bytes).map(keys).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(bytes);
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    })
}

/// The fields of a struct as the host gives it; `None` where it is none.
pub fn pairs(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let (count, mut rest) = number(bytes)?;
    let mut lengths = Vec::new();
    // Each pair has eight bytes of lengths: a count that does not fit ends here.
    for _ in 0..count {
        let (key, after) = number(rest)?;
        let (value, after) = number(after)?;
        lengths.push((key, value));
        rest = after;
    }
    let mut pairs = Vec::with_capacity(lengths.len());
    for (key, value) in lengths {
        let key = String::from_utf8(text(&mut rest, key)?.to_vec()).ok()?;
        pairs.push((key, text(&mut rest, value)?.to_vec()));
    }
    rest.is_empty().then_some(pairs)
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*number)).ok()?, rest))
}

/// A text of this length, and its zero byte.
fn text<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (found, after) = rest.split_at_checked(length)?;
    let (zero, after) = after.split_first()?;
    *rest = after;
    (*zero == 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn as_host(list: &[&str]) -> Vec<u8> {
        let mut bytes = u32::try_from(list.len()).unwrap().to_le_bytes().to_vec();
        for key in list {
            bytes.extend(u32::try_from(key.len()).unwrap().to_le_bytes());
            bytes.extend(0_u32.to_le_bytes());
        }
        for key in list {
            bytes.extend(key.as_bytes());
            bytes.extend([0, 0]);
        }
        bytes
    }

    #[test]
    fn lists_come_in_the_hosts_form_or_as_one_text() {
        for list in [vec![], vec!["10.0.0.1:80"], vec!["10.0.0.1:80", "[::1]:8000", ""]] {
            assert_eq!(listed(&as_host(&list)), list, "{list:?}");
        }
        assert_eq!(listed(b" 10.0.0.1:80, [::1]:8000 ,,"), ["10.0.0.1:80", "[::1]:8000"]);
        assert_eq!(listed(b""), Vec::<String>::new());
        // Neither: it is shown to whoever has written it.
        let mut cut = as_host(&["10.0.0.1:80"]);
        cut.pop();
        assert_eq!(listed(&cut).len(), 1);
        assert_eq!(listed(&[255; 12]).len(), 1);
    }
}
