// Package patch decides whether a pod joins the mesh and computes the change
// that makes it join: pod in, decision and RFC 6902 patch out.
//
// It owns the sidecar's container, its token volume, the rewriting of probes,
// the reserved user, the annotations' syntax, the way back (Uninject) and the
// same work on manifests. It is pure: it reads no API server, no clock and no
// environment, so `hauberk inject -f` gives the very patch that the webhook
// gives. It does not own admission (injector/webhook) nor certificates
// (injector/certs).
//
// # Decisions
//
//   - Pods on the host's network are not injected. They have no network
//     namespace of their own to redirect, their address is the node's, and
//     they are no subject of pod policy; Pod Security (baseline and
//     restricted forbid them) governs who may run them. They are let through
//     with a warning, and the admission policy writes an audit annotation.
//   - shareProcessNamespace and hostPID are allowed with a warning: a
//     container that is root may then take the sidecar's user and read its
//     key. That key is worth what the pod's own service account is worth, so
//     nothing is gained but a bypass of the pod's own sidecar, which the
//     host's policy still sees.
//   - hostUsers: false is refused: the kernel refuses the owner match of the
//     redirection in a network namespace that another user namespace owns, so
//     such a pod would never get a network.
//   - Probes that name a host are left alone with a warning: the kubelet sends
//     them to that host and not to the pod.
//   - Lifecycle hooks with httpGet are left alone with a warning. The health
//     port takes no identity, and a hook has effects: offering it there would
//     let anyone run it. Use an exec hook, or exclude the port.
//   - The token is mounted with mode 0644. The kubelet makes a projected token
//     0600 for the common user when all containers share one, which cannot be
//     as the sidecar's user is its own, and 0640 for the pod's fsGroup when
//     there is one, which every container is then a member of; in all other
//     cases the file is root's and the mode as we say it. Only the sidecar
//     mounts the volume.
package patch
