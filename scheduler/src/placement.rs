//! The manager's questions.

use std::sync::Arc;

use d7y_chassis::spans::{About, Spans};
use d7y_proto::scheduler::{
    EndPreheatRequest, EndPreheatResponse, PreheatReport, PreheatRequest, placement_server,
};
use tonic::{Request, Response, Status};

use crate::hub::Hub;
use crate::preheats::{PreheatError, Wanted};

#[derive(Debug, Clone)]
pub(crate) struct Placements {
    pub hub: Arc<Hub>,
    pub spans: Spans,
}

#[tonic::async_trait]
impl placement_server::Placement for Placements {
    async fn preheat(&self, request: Request<PreheatRequest>) -> Result<Response<PreheatReport>, Status> {
        let request = request.into_inner();
        let seen = (request.incarnation.clone(), request.version);
        // Asked again and again; only the first time are peers chosen.
        let first = request.peers.is_empty().then(|| (self.spans.own_root(), request.job.clone()));
        let report = Wanted::parse(request).and_then(|wanted| self.hub.preheat(wanted, seen));
        if let Some((span, job)) = first {
            self.spans.end(span, || {
                let peers = report.as_ref().map_or(0, |report| report.peers.len() as u64);
                let about = About::new("place a preheat").text("d7y.job", job).number("d7y.peers", peers);
                about.error(report.as_ref().err())
            });
        }
        report.map(Response::new).map_err(|error| match error {
            PreheatError::Malformed(_) => Status::invalid_argument(error.to_string()),
            PreheatError::TooMany => Status::resource_exhausted(error.to_string()),
        })
    }

    async fn end_preheat(
        &self,
        request: Request<EndPreheatRequest>,
    ) -> Result<Response<EndPreheatResponse>, Status> {
        self.hub.end_preheat(&request.into_inner().job);
        Ok(Response::new(EndPreheatResponse {}))
    }
}
