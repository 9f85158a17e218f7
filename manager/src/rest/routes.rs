//! Routes that cannot be without a permission: the only way to add one asks for it.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, on};
use http::Method;

use super::access::{Guard, guard};
use super::error::ApiError;
use super::permission::Permission;
use crate::manager::Manager;

pub(super) type App = Arc<Manager>;

pub(super) struct Routes {
    app: App,
    router: Router<App>,
    table: Vec<(Method, &'static str, Permission)>,
}

impl Routes {
    pub fn new(app: App) -> Self {
        Self { app, router: Router::new(), table: Vec::new() }
    }

    pub fn get<H, T>(self, path: &'static str, permission: Permission, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add((Method::GET, MethodFilter::GET), path, permission, handler)
    }

    pub fn post<H, T>(self, path: &'static str, permission: Permission, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add((Method::POST, MethodFilter::POST), path, permission, handler)
    }

    pub fn patch<H, T>(self, path: &'static str, permission: Permission, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add((Method::PATCH, MethodFilter::PATCH), path, permission, handler)
    }

    pub fn delete<H, T>(self, path: &'static str, permission: Permission, handler: H) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        self.add((Method::DELETE, MethodFilter::DELETE), path, permission, handler)
    }

    fn add<H, T>(
        mut self,
        (method, filter): (Method, MethodFilter),
        path: &'static str,
        permission: Permission,
        handler: H,
    ) -> Self
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let guarded = Guard { app: self.app.clone(), permission };
        let route = on(filter, handler).route_layer(from_fn_with_state(guarded, guard));
        self.router = self.router.route(path, route);
        self.table.push((method, path, permission));
        self
    }

    pub fn into_router(self) -> Router {
        self.router.fallback(|| async { ApiError::not_found("there is nothing here") }).with_state(self.app)
    }

    #[cfg(test)]
    pub fn table(&self) -> &[(Method, &'static str, Permission)] {
        &self.table
    }
}
