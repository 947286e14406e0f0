//! x
use knarr_schema::*;
#[test]
fn smoke() {
    let s = Schema::builtin();
    let id = s.kind_type("apps", "v1", "Deployment").unwrap();
    let d = s.decode(id, br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x","foo":1,"resourceVersion":"3"},"spec":{"replicas":3,"replicas":4,"template":{"spec":{"containers":[{"name":"a","image":"b","resources":{"limits":{"cpu":"1000m","memory":1024}},"x":1}]}}}}"#).unwrap();
    println!("{}\n{}", d.tree, strict_error(&d.issues));
    let mut t = d.tree;
    s.default(id, &mut t);
    s.normalize(id, &mut t);
    println!("{}", t);
    let b = encode("Deployment", "apps/v1", &t);
    println!("{}", String::from_utf8_lossy(&b));
    let o = resource_version_offset(&b).unwrap();
    println!("{}", String::from_utf8_lossy(&with_resource_version(&b, o, 77)));
    for j in [
        r#"{"spec":{"replicas":"a"}}"#,
        r#"{"spec":{"template":{"spec":{"containers":"a"}}}}"#,
        r#"{"spec":{"template":{"spec":{"containers":[{"name":1.5}]}}}}"#,
        r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":"x"}}]}}}}"#,
        r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}}}"#,
        r#"{"spec":{"template":{"spec":{"containers":[{"imagePullPolicy":true}]}}}}"#,
        r#"{"metadata":{"labels":{"a":1}}}"#,
        r#"{"metadata":{"creationTimestamp":"foo"}}"#,
        r#"{"metadata":{"creationTimestamp":"2020-13-01T00:00:00Z"}}"#,
        r#"{"spec":{"replicas":1.5}}"#,
        r#"{"spec":{"replicas":3000000000}}"#,
        r#"[]"#,
        r#"{"a"#,
    ] {
        println!("{:?}", s.decode(id, j.as_bytes()).err().map(|e| e.to_string()));
    }
    let t = std::time::Instant::now();
    let s = Schema::builtin();
    println!("{:?} {}", t.elapsed(), s.type_ids().count());
}
