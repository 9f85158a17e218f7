//! Which image is meant by what a person writes.

/// An image as the snapshotter knows it.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// `HOST/REPOSITORY:TAG`, or `HOST-without-port/REPOSITORY@DIGEST` where containerd told no more.
    pub reference: &'a str,
    /// Digest of the manifest.
    pub manifest: &'a str,
}

/// Fewer digits of a digest are more likely a word.
const MIN_DIGITS: usize = 6;

impl Known<'_> {
    /// By the name that the image was pulled under, by a part of it, or by its digest or the beginning of it.
    ///
    /// Tag and port count where both sides have one. A name with either is no part of a longer one.
    pub fn is_meant_by(self, name: &str) -> bool {
        if name == self.reference || begins_digest(name, self.manifest) {
            return true;
        }
        let (known, wanted) = (Parts::of(self.reference), Parts::of(name));
        if wanted.digest.is_some_and(|digest| !begins_digest(digest, self.manifest)) {
            return false;
        }
        let differ =
            |known: Option<&str>, wanted: Option<&str>| known.zip(wanted).is_some_and(|(a, b)| a != b);
        if differ(known.tag, wanted.tag) || differ(known.port, wanted.port) {
            return false;
        }
        let (known, path) = (known.path(), wanted.path());
        let is_whole = wanted.tag.or(wanted.port).or(wanted.digest).is_some();
        match is_whole {
            true => known == path || known.ends_with(&format!("/{path}")),
            false => !path.is_empty() && known.contains(&path),
        }
    }
}

/// `sha256:` may be left out.
fn begins_digest(text: &str, digest: &str) -> bool {
    let hex = |text: &str| text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    let digits = hex(text);
    digits.len() >= MIN_DIGITS
        && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        && hex(digest).starts_with(&digits)
}

#[derive(Debug, Default)]
struct Parts<'a> {
    /// Only of a name with a repository below it: alone, `app:5000` is a tag.
    host: Option<&'a str>,
    port: Option<&'a str>,
    repository: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn of(name: &'a str) -> Self {
        let (name, digest) = split(name.split_once('@'), name);
        let tag = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
        let (name, tag) = split(tag, name);
        let Some((host, repository)) = name.split_once('/') else {
            return Self { repository: name, tag, digest, ..Self::default() };
        };
        let port = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let (host, port) = split(port, host);
        Self { host: Some(host), port, repository, tag, digest }
    }

    fn path(&self) -> String {
        self.host.map_or_else(|| self.repository.to_owned(), |host| format!("{host}/{}", self.repository))
    }
}

fn split<'a>(parts: Option<(&'a str, &'a str)>, whole: &'a str) -> (&'a str, Option<&'a str>) {
    parts.map_or((whole, None), |(first, second)| (first, Some(second)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_by_the_name_that_was_pulled() {
        const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let bare = format!("127.0.0.1/app@{DIGEST}");
        let table = [
            (bare.as_str(), "127.0.0.1:27500/app:1.2", true),
            (&bare, "127.0.0.1/app:2", true),
            (&bare, "127.0.0.1:27500/app", true),
            (&bare, "app:1.2", true),
            (&bare, "app", true),
            (&bare, &bare, true),
            (&bare, DIGEST, true),
            (&bare, "sha256:012345", true),
            (&bare, "0123456789AB", true),
            (&bare, "01234", false),
            (&bare, "abcdef", false),
            (&bare, "127.0.0.1/app@sha256:ffffff", false),
            (&bare, "127.0.0.1:27500/other:1.2", false),
            (&bare, "registry.example/app:1.2", false),
            (&bare, "127.0.0.1:27500/ap:1.2", false),
            (&bare, "ap", true),
            (&bare, "", false),
            (&bare, "@", false),
            (&bare, ":", false),
            (&bare, "é:/@", false),
            ("registry.example:5000/team/app:1", "registry.example:5000/team/app:1", true),
            ("registry.example:5000/team/app:1", "registry.example/team/app:1", true),
            ("registry.example:5000/team/app:1", "app:1", true),
            ("registry.example:5000/team/app:1", "app:2", false),
            ("registry.example:5000/team/app:1", "registry.example:5001/team/app:1", false),
            ("docker.io/library/python:3.12", "python:3.12", true),
        ];
        for (reference, name, expected) in table {
            assert_eq!(
                Known { reference, manifest: DIGEST }.is_meant_by(name),
                expected,
                "{reference} {name:?}"
            );
        }
    }
}
