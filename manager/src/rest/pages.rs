use std::fmt::Write;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Uri, header};
use serde::{Deserialize, Serialize};

const DEFAULT_PER_PAGE: u64 = 10;
const MAX_PER_PAGE: u64 = 10_000;

/// `?page=1&per_page=10`.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct PageQuery {
    page: Option<u64>,
    per_page: Option<u64>,
}

impl PageQuery {
    /// From 1.
    pub fn number(self) -> u64 {
        self.page.unwrap_or(1).max(1)
    }

    pub fn size(self) -> u64 {
        self.per_page.unwrap_or(DEFAULT_PER_PAGE).clamp(1, MAX_PER_PAGE)
    }

    /// The page of a list that is at hand.
    pub fn cut<T: Serialize>(self, uri: &Uri, all: Vec<T>) -> Response {
        let total = all.len() as u64;
        let skipped = usize::try_from((self.number() - 1).saturating_mul(self.size())).unwrap_or(usize::MAX);
        let size = usize::try_from(self.size()).unwrap_or(usize::MAX);
        let page: Vec<T> = all.into_iter().skip(skipped).take(size).collect();
        self.answer(uri, &page, total)
    }

    /// A page, with links to the others as GitHub has them (RFC 8288).
    pub fn answer<T: Serialize>(self, uri: &Uri, page: &[T], total: u64) -> Response {
        let mut response = Json(page).into_response();
        if let Ok(links) = HeaderValue::from_str(&self.links(uri.path(), total)) {
            response.headers_mut().insert(header::LINK, links);
        }
        response
    }

    fn links(self, path: &str, total: u64) -> String {
        let (at, size) = (self.number(), self.size());
        let last = total.div_ceil(size).max(1);
        let links = [
            ("prev", (at > 1).then(|| (at - 1).min(last))),
            ("next", (at < last).then(|| at + 1)),
            ("first", Some(1)),
            ("last", Some(last)),
        ];
        let known = links.into_iter().filter_map(|(relation, page)| Some((relation, page?)));
        known.fold(String::new(), |mut text, (relation, page)| {
            let separator = if text.is_empty() { "" } else { ", " };
            let _ = write!(text, r#"{separator}<{path}?page={page}&per_page={size}>; rel="{relation}""#);
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_other_pages() {
        let query = |page, per_page| PageQuery { page, per_page };
        let relations = |query: PageQuery, total| {
            let links = query.links("/x", total);
            links
                .split(", ")
                .map(|link| link.replace("</x?page=", "").replace("; rel=", " "))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            relations(query(None, None), 25),
            [r#"2&per_page=10> "next""#, r#"1&per_page=10> "first""#, r#"3&per_page=10> "last""#]
        );
        assert_eq!(relations(query(Some(3), None), 25)[0], r#"2&per_page=10> "prev""#);
        assert_eq!(query(Some(0), Some(0)).number(), 1);
        assert_eq!(query(Some(0), Some(0)).size(), 1);
        assert_eq!(relations(query(Some(9), Some(5)), 0).len(), 3);
    }
}
