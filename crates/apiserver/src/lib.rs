//! The machinery that serves any kind: CRUD, list and watch, patches, apply, admission, authentication, authorization,
//! audit. Knows the store and schemas; must never know HTTP routing or any dialect.
