//! The Auth service: users, roles, permissions, and logging in.

use bytes::Bytes;
use knarr_etcd_model::auth::{self, AuthError, Edit, ROOT};
use knarr_etcdpb::{authpb, etcdserverpb as pb};
use pb::auth_server::Auth;
use tonic::{Request, Response, Status};

use crate::face::{Caller, Face};
use crate::refusal::denied;

impl Face {
    async fn edited<T>(&self, request: &Request<T>, edit: Edit) -> Result<(), Status> {
        let caller = self.caller(request)?;
        self.edit(&caller, edit).await
    }

    /// A password as it is kept. Hashing takes its time on purpose, so it has a thread of its own.
    async fn hashed(&self, password: String) -> Result<Bytes, Status> {
        let cost = self.config.bcrypt_cost;
        let hashed = tokio::task::spawn_blocking(move || bcrypt::hash(password, cost)).await;
        match hashed {
            Ok(Ok(hash)) => Ok(hash.into()),
            _ => Err(Status::invalid_argument("etcdserver: the password cannot be hashed")),
        }
    }

    /// What a new or changed password comes to: hashed here, or by the client (base64).
    async fn password(&self, password: String, hashed: String) -> Result<Bytes, Status> {
        if hashed.is_empty() {
            return self.hashed(password).await;
        }
        base64::Engine::decode(&base64::prelude::BASE64_STANDARD, hashed)
            .map(Bytes::from)
            .map_err(|_| Status::invalid_argument("etcdserver: the hashed password is not base64"))
    }

    async fn log_in(&self, name: &str, password: String) -> Result<String, AuthError> {
        let auth = self.auth();
        if !auth.enabled() {
            return Err(AuthError::AuthNotEnabled);
        }
        let known = auth.user(name).ok();
        let known = known.filter(|user| !user.options.is_some_and(|options| options.no_password));
        let hash = known.and_then(|user| String::from_utf8(user.password.to_vec()).ok());
        let cost = self.config.bcrypt_cost;
        let judge = move || {
            is_right(hash, cost, |hash| bcrypt::verify(password, hash).is_ok_and(|right| right))
        };
        let right = tokio::task::spawn_blocking(judge).await;
        if !matches!(right, Ok(true)) {
            return Err(AuthError::AuthFailed);
        }
        self.tokens.issue(name, auth.revision())
    }

    /// Who may look at a role or user: administrators, and those whom it is about.
    fn may_see(&self, caller: &Caller, theirs: bool) -> Result<(), Status> {
        if theirs { Ok(()) } else { self.administrates(&self.auth(), caller) }
    }
}

/// Whether a password is right. One for which there is no hash is compared with a hash all the
/// same, so that the time it takes does not tell which names there are.
fn is_right(hash: Option<String>, cost: u32, verify: impl FnOnce(&str) -> bool) -> bool {
    let known = hash.is_some();
    let hash = hash.unwrap_or_else(|| format!("$2b${cost:02}${}", ".".repeat(53)));
    verify(&hash) && known
}

fn grade(named: authpb::Permission) -> auth::Permission {
    auth::Permission { grade: named.perm_type, key: named.key, range_end: named.range_end }
}

fn permission(held: &auth::Permission) -> authpb::Permission {
    let auth::Permission { grade, key, range_end } = held.clone();
    authpb::Permission { perm_type: grade, key, range_end }
}

#[tonic::async_trait]
impl Auth for Face {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        self.edited(&request, Edit::Enable).await?;
        Ok(Response::new(pb::AuthEnableResponse { header: self.header_now() }))
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        self.edited(&request, Edit::Disable).await?;
        self.tokens.revoke_all();
        Ok(Response::new(pb::AuthDisableResponse { header: self.header_now() }))
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let (caller, auth) = (self.caller(&request)?, self.auth());
        self.administrates(&auth, &caller)?;
        let (enabled, auth_revision) = (auth.enabled(), auth.revision());
        let header = self.header_now();
        Ok(Response::new(pb::AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let token = self.log_in(&name, password).await.map_err(denied)?;
        Ok(Response::new(pb::AuthenticateResponse { header: self.header_now(), token }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let caller = self.caller(&request)?;
        self.administrates(&self.auth(), &caller)?;
        let new = request.into_inner();
        let no_password = new.options.is_some_and(|options| options.no_password);
        let password = match no_password {
            true => Bytes::new(),
            false => self.password(new.password, new.hashed_password).await?,
        };
        let options = Some(auth::UserOptions { no_password });
        let user = auth::User { name: new.name, password, roles: Vec::new(), options };
        self.edit(&caller, Edit::UserAdd(user)).await?;
        Ok(Response::new(pb::AuthUserAddResponse { header: self.header_now() }))
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let (caller, name) = (self.caller(&request)?, &request.get_ref().name);
        self.may_see(&caller, caller.is(name))?;
        let roles = self.auth().user(name).map_err(denied)?.roles.clone();
        Ok(Response::new(pb::AuthUserGetResponse { header: self.header_now(), roles }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let (caller, auth) = (self.caller(&request)?, self.auth());
        self.administrates(&auth, &caller)?;
        let users = auth.users().map(|user| user.name.clone()).collect();
        Ok(Response::new(pb::AuthUserListResponse { header: self.header_now(), users }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let name = request.get_ref().name.clone();
        self.edited(&request, Edit::UserDelete(name.clone())).await?;
        self.tokens.revoke(&name);
        Ok(Response::new(pb::AuthUserDeleteResponse { header: self.header_now() }))
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let caller = self.caller(&request)?;
        self.administrates(&self.auth(), &caller)?;
        let new = request.into_inner();
        let password = self.password(new.password, new.hashed_password).await?;
        self.edit(&caller, Edit::UserPassword(new.name.clone(), password)).await?;
        self.tokens.revoke(&new.name);
        Ok(Response::new(pb::AuthUserChangePasswordResponse { header: self.header_now() }))
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let pb::AuthUserGrantRoleRequest { user, role } = request.get_ref().clone();
        self.edited(&request, Edit::UserGrant(user, role)).await?;
        Ok(Response::new(pb::AuthUserGrantRoleResponse { header: self.header_now() }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let pb::AuthUserRevokeRoleRequest { name, role } = request.get_ref().clone();
        self.edited(&request, Edit::UserRevoke(name, role)).await?;
        Ok(Response::new(pb::AuthUserRevokeRoleResponse { header: self.header_now() }))
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let name = request.get_ref().name.clone();
        self.edited(&request, Edit::RoleAdd(name)).await?;
        Ok(Response::new(pb::AuthRoleAddResponse { header: self.header_now() }))
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let (caller, auth, name) = (self.caller(&request)?, self.auth(), &request.get_ref().role);
        self.may_see(&caller, caller.has_role(&auth, name))?;
        let role = auth.role(name).map_err(denied)?;
        let everything = (name == ROOT).then(|| authpb::Permission {
            perm_type: authpb::permission::Type::Readwrite.into(),
            key: Bytes::new(),
            range_end: Bytes::from_static(&[0]),
        });
        let perm = everything.into_iter().chain(role.permissions.iter().map(permission)).collect();
        Ok(Response::new(pb::AuthRoleGetResponse { header: self.header_now(), perm }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let (caller, auth) = (self.caller(&request)?, self.auth());
        self.administrates(&auth, &caller)?;
        let roles = auth.roles().map(|role| role.name.clone()).collect();
        Ok(Response::new(pb::AuthRoleListResponse { header: self.header_now(), roles }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let role = request.get_ref().role.clone();
        self.edited(&request, Edit::RoleDelete(role)).await?;
        Ok(Response::new(pb::AuthRoleDeleteResponse { header: self.header_now() }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let pb::AuthRoleGrantPermissionRequest { name, perm } = request.get_ref().clone();
        self.edited(&request, Edit::RoleGrant(name, perm.map(grade))).await?;
        Ok(Response::new(pb::AuthRoleGrantPermissionResponse { header: self.header_now() }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let pb::AuthRoleRevokePermissionRequest { role, key, range_end } =
            request.get_ref().clone();
        self.edited(&request, Edit::RoleRevoke(role, key, range_end)).await?;
        Ok(Response::new(pb::AuthRoleRevokePermissionResponse { header: self.header_now() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_takes_as_long_as_a_wrong_password() {
        let known = bcrypt::hash("secret", 5).expect("a cost of bcrypt's");
        for hash in [Some(known), None] {
            let mut asked = Vec::new();
            let verify = |hash: &str| {
                asked.push(hash.parse::<bcrypt::HashParts>().expect("a hash").get_cost());
                bcrypt::verify("wrong", hash).expect("a hash")
            };
            assert!(!is_right(hash, 5, verify));
            assert_eq!(asked, [5], "the time is that of the cost");
        }
        assert!(!is_right(None, 5, |_| true), "nobody has the password of nobody");
    }
}
