//! What people, the CLI and Harbor see of the manager: JSON over HTTP.
//!
//! The shapes are those of Dragonfly's Open API where it has them, so that its clients work: whole numbers as ids, times
//! in RFC 3339, lists as bare arrays with `page`, `per_page` and a `Link` header. Nothing is answered to anybody unless
//! [`routes`] says who may ask.

mod access;
mod clusters;
mod credentials;
mod error;
mod jobs;
mod pages;
mod permission;
mod routes;
mod tokens;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;

use crate::manager::Manager;
use permission::Permission::{Open, Own, Read, Write};
use permission::Resource::{Clusters, Credentials, Jobs, Peers, Schedulers, SeedPeers, Tokens, Users};
use routes::Routes;

/// A request's body; a job with a long list of headers has some KiB.
const MAX_BODY_BYTES: usize = 1 << 20;

pub(crate) fn router(manager: Arc<Manager>) -> Router {
    routes(manager).into_router().layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

/// Every route with who may use it.
fn routes(manager: Arc<Manager>) -> Routes {
    let routes = Routes::new(manager)
        .get("/healthy", Open, || async { "ok\n" })
        .get("/api/v1/clusters", Read(Clusters), clusters::list)
        .post("/api/v1/clusters", Write(Clusters), clusters::create)
        .get("/api/v1/clusters/{id}", Read(Clusters), clusters::get)
        .patch("/api/v1/clusters/{id}", Write(Clusters), clusters::change)
        .get("/api/v1/schedulers", Read(Schedulers), clusters::schedulers)
        .get("/api/v1/seed-peers", Read(SeedPeers), clusters::seed_peers)
        .get("/api/v1/peers", Read(Peers), clusters::peers)
        .get("/api/v1/jobs", Read(Jobs), jobs::list)
        .post("/api/v1/jobs", Write(Jobs), jobs::create)
        .get("/api/v1/jobs/{id}", Read(Jobs), jobs::get)
        .get("/api/v1/users", Read(Users), users::list)
        .post("/api/v1/users", Write(Users), users::create)
        .get("/api/v1/users/{id}", Read(Users), users::get)
        .patch("/api/v1/users/{id}", Write(Users), users::change)
        .post("/api/v1/users/{id}/reset_password", Own(Users), users::reset_password)
        .get("/api/v1/personal-access-tokens", Read(Tokens), tokens::list)
        .post("/api/v1/personal-access-tokens", Own(Tokens), tokens::create)
        .delete("/api/v1/personal-access-tokens/{id}", Own(Tokens), tokens::delete)
        .get("/api/v1/registry-credentials", Read(Credentials), credentials::list)
        .post("/api/v1/registry-credentials", Write(Credentials), credentials::keep)
        .delete("/api/v1/registry-credentials/{id}", Write(Credentials), credentials::delete);
    // The same for programs, where Harbor's Dragonfly driver looks for it.
    routes
        .get("/oapi/v1/clusters", Read(Clusters), clusters::list)
        .get("/oapi/v1/clusters/{id}", Read(Clusters), clusters::get)
        .get("/oapi/v1/jobs", Read(Jobs), jobs::list)
        .post("/oapi/v1/jobs", Write(Jobs), jobs::create)
        .get("/oapi/v1/jobs/{id}", Read(Jobs), jobs::get)
}

#[cfg(test)]
mod tests;
