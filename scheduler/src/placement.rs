//! The manager's questions.

use std::sync::Arc;

use d7y_proto::scheduler::{
    EndPreheatRequest, EndPreheatResponse, PreheatReport, PreheatRequest, placement_server,
};
use tonic::{Request, Response, Status};

use crate::hub::Hub;
use crate::preheats::{PreheatError, Wanted};

#[derive(Debug, Clone)]
pub(crate) struct Placements(pub Arc<Hub>);

#[tonic::async_trait]
impl placement_server::Placement for Placements {
    async fn preheat(&self, request: Request<PreheatRequest>) -> Result<Response<PreheatReport>, Status> {
        let request = request.into_inner();
        let seen = (request.incarnation.clone(), request.version);
        let report = Wanted::parse(request).and_then(|wanted| self.0.preheat(wanted, seen));
        report.map(Response::new).map_err(|error| match error {
            PreheatError::Malformed(_) => Status::invalid_argument(error.to_string()),
            PreheatError::TooMany => Status::resource_exhausted(error.to_string()),
        })
    }

    async fn end_preheat(
        &self,
        request: Request<EndPreheatRequest>,
    ) -> Result<Response<EndPreheatResponse>, Status> {
        self.0.end_preheat(&request.into_inner().job);
        Ok(Response::new(EndPreheatResponse {}))
    }
}
