//! `.dockerignore` as the patterns that a client is told. Pure. Source: moby/patternmatcher, ignorefile.

/// The patterns of a file, cleaned as Docker's own reader does it.
pub fn patterns(text: &str) -> Vec<String> {
    let lines = text.trim_start_matches('\u{feff}').lines();
    lines.filter(|line| !line.starts_with('#')).filter_map(|line| pattern(line.trim())).collect()
}

fn pattern(line: &str) -> Option<String> {
    if line.is_empty() {
        return None;
    }
    let (negated, rest) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest.trim()));
    let mut parts: Vec<&str> = Vec::new();
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let clean = if parts.is_empty() { ".".to_owned() } else { parts.join("/") };
    Some(if negated { format!("!{clean}") } else { clean })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_cleaned() {
        let text = "\u{feff}# no\n\n /a/ \n!b/../c\n./d//e\n*.md\n.\n ! x\n";
        assert_eq!(patterns(text), ["a", "!c", "d/e", "*.md", ".", "!x"]);
    }
}
