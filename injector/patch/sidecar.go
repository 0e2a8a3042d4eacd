package patch

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

const (
	tokenDir    = "/var/run/secrets/hauberk"
	tokenFile   = "token"
	tokenExpiry = int64(3600) // seconds; the kubelet renews at 80 %
	tokenMode   = int32(0o644)
	sidecarArg  = "sidecar"
	envProbes   = "HAUBERK_PROBES"
)

// Status is the value of the annotation hauberk.dev/status.
type Status struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Image    string `json:"image"`
	Reason   Reason `json:"reason"`
}

func encodeStatus(s Status) string {
	out, _ := json.Marshal(s) // strings only: cannot fail
	return string(out)
}

// sidecar is the container. It is a native sidecar: the kubelet starts what
// follows it only when its startup probe has passed, stops it after the
// application, and does not wait for it when a Job's own containers end.
func sidecar(cfg Config, s settings, probes map[string]Probe) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	user, group := int64(names.ProxyUID), int64(names.ProxyGID)
	yes, no := true, false
	health := func(path string) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(names.PortHealth)}}
	}
	return corev1.Container{
		Name:            names.ProxyContainer,
		Image:           cfg.Image,
		ImagePullPolicy: cfg.ImagePullPolicy,
		Args:            []string{sidecarArg},
		RestartPolicy:   &always,
		Ports: []corev1.ContainerPort{
			{Name: "hauberk-metrics", ContainerPort: names.PortMetrics, Protocol: corev1.ProtocolTCP},
			{Name: "hauberk-health", ContainerPort: names.PortHealth, Protocol: corev1.ProtocolTCP},
		},
		Env:       sidecarEnv(cfg, s, probes),
		Resources: s.resources,
		VolumeMounts: []corev1.VolumeMount{
			{Name: TokenVolume, MountPath: tokenDir, ReadOnly: true},
		},
		// Two minutes of one-second probes: quick when all is well, and a
		// restart when the sidecar hangs.
		StartupProbe:   &corev1.Probe{ProbeHandler: health("/readyz"), PeriodSeconds: 1, TimeoutSeconds: 1, FailureThreshold: 120},
		ReadinessProbe: &corev1.Probe{ProbeHandler: health("/readyz"), PeriodSeconds: 5, TimeoutSeconds: 3, FailureThreshold: 3},
		LivenessProbe:  &corev1.Probe{ProbeHandler: health("/healthz"), PeriodSeconds: 10, TimeoutSeconds: 5, FailureThreshold: 3},
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: drainCommand()},
		}},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		SecurityContext: &corev1.SecurityContext{
			RunAsUser:                &user,
			RunAsGroup:               &group,
			RunAsNonRoot:             &yes,
			Privileged:               &no,
			AllowPrivilegeEscalation: &no,
			ReadOnlyRootFilesystem:   &yes,
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
}

func sidecarEnv(cfg Config, s settings, probes map[string]Probe) []corev1.EnvVar {
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}}}
	}
	limit := s.resources.Limits[corev1.ResourceMemory]
	env := []corev1.EnvVar{
		{Name: "HAUBERK_CONTROL_ADDRESS", Value: cfg.ControlAddress},
		{Name: "HAUBERK_TRUST_DOMAIN", Value: cfg.TrustDomain},
		{Name: "HAUBERK_TRUST_BUNDLE", Value: cfg.TrustBundle},
		{Name: "HAUBERK_TOKEN_FILE", Value: tokenDir + "/" + tokenFile},
		field("HAUBERK_POD_NAME", "metadata.name"),
		field("HAUBERK_POD_NAMESPACE", "metadata.namespace"),
		field("HAUBERK_POD_UID", "metadata.uid"),
		field("HAUBERK_POD_IPS", "status.podIPs"),
		field("HAUBERK_NODE_NAME", "spec.nodeName"),
		field("HAUBERK_SERVICE_ACCOUNT", "spec.serviceAccountName"),
		{Name: envProbes, Value: escapeEnv(encodeProbes(probes))},
		{Name: "HAUBERK_LOG_LEVEL", Value: s.logLevel},
		{Name: "HAUBERK_DRAIN_SECONDS", Value: strconv.Itoa(s.drainSeconds)},
	}
	if s.excludeInboundPorts != "" {
		env = append(env, corev1.EnvVar{Name: "HAUBERK_EXCLUDE_INBOUND_PORTS", Value: s.excludeInboundPorts})
	}
	// A tenth of the limit is left to what Go's runtime does not count.
	return append(env, corev1.EnvVar{Name: "GOMEMLIMIT", Value: strconv.FormatInt(limit.Value()/10*9, 10)})
}

// escapeEnv keeps the kubelet from expanding "$(NAME)" in a value.
func escapeEnv(v string) string { return strings.ReplaceAll(v, "$", "$$") }

func unescapeEnv(v string) string { return strings.ReplaceAll(v, "$$", "$") }

// tokenVolume is the pod's own token for our CA, which needs neither the
// service account's automatic mount nor the API server's audience.
func tokenVolume() corev1.Volume {
	expiry, mode := tokenExpiry, tokenMode
	return corev1.Volume{Name: TokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		DefaultMode: &mode,
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: names.TokenAudience, ExpirationSeconds: &expiry, Path: tokenFile,
		}}},
	}}}
}

// sidecarOf finds the native sidecar by its name.
func sidecarOf(pod *corev1.Pod) *corev1.Container {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == names.ProxyContainer {
			return &pod.Spec.InitContainers[i]
		}
	}
	return nil
}

// checkOurs tells whether the container named as ours is ours. The
// ValidatingAdmissionPolicy asks the same.
func checkOurs(pod *corev1.Pod, cfg Config) (present bool, err error) {
	const mend = "rename it if it is your own; otherwise remove it and let the injector add it"
	for where, c := range containers(pod) {
		if c.Name == names.ProxyContainer && where.list != "initContainers" {
			return false, refuse(where.field(), mend, "the name is the sidecar's, which is an init container")
		}
	}
	c := sidecarOf(pod)
	if c == nil {
		if slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == TokenVolume }) {
			return false, refuse("spec.volumes["+TokenVolume+"]", "rename the volume", "the name is the sidecar's")
		}
		return false, nil
	}
	where := "spec.initContainers[" + c.Name + "]"
	sc := c.SecurityContext
	switch {
	case c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways:
		return true, refuse(where+".restartPolicy", mend, "the container has the sidecar's name but is not restarted always")
	case imageRepository(c.Image) != imageRepository(cfg.Image):
		return true, refuse(where+".image", mend, "the container has the sidecar's name but the image %q, where %s is expected", c.Image, imageRepository(cfg.Image))
	case len(c.Command) > 0 || !slices.Equal(c.Args, []string{sidecarArg}):
		return true, refuse(where+".args", mend, "the container has the sidecar's name but another command")
	case sc == nil || sc.RunAsUser == nil || *sc.RunAsUser != names.ProxyUID:
		return true, refuse(where+".securityContext.runAsUser", mend, "the container has the sidecar's name but not its user %d", names.ProxyUID)
	case len(c.EnvFrom) > 0:
		return true, refuse(where+".envFrom", mend, "the container has the sidecar's name but takes its environment from elsewhere")
	case c.Lifecycle != nil && (foreign(c.Lifecycle.PostStart) || foreign(c.Lifecycle.PreStop)):
		return true, refuse(where+".lifecycle", mend, "the container has the sidecar's name but runs another command as a hook")
	}
	// What runs in the container is not captured: nothing but ours may.
	for name, p := range map[string]*corev1.Probe{"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe} {
		if p != nil && p.Exec != nil {
			return true, refuse(where+"."+name, mend, "the container has the sidecar's name but runs a command as a probe")
		}
	}
	for _, m := range c.VolumeMounts {
		path := filepath.Clean(m.MountPath)
		if m.Name == TokenVolume && path == tokenDir || m.Name != TokenVolume && path != tokenDir && strings.HasPrefix(path, secretsDir) {
			continue
		}
		return true, refuse(where+".volumeMounts["+m.Name+"]", mend, "the container has the sidecar's name but a volume at %s", m.MountPath)
	}
	for _, e := range c.Env {
		if strings.HasPrefix(e.Name, "LD_") || e.Name == "GODEBUG" {
			return true, refuse(where+".env["+e.Name+"]", mend, "the container has the sidecar's name but another environment")
		}
	}
	for name := range trustEnv(cfg) {
		found := 0
		for _, e := range c.Env {
			if e.Name == name {
				found++
				if e.ValueFrom != nil {
					found++
				}
			}
		}
		if found > 1 {
			return true, refuse(where+".env["+name+"]", mend, "the container has the sidecar's name but another environment")
		}
	}
	return true, nil
}

// secretsDir is where tokens of other systems may be mounted into all
// containers of a pod.
const secretsDir = "/var/run/secrets/"

// foreign tells a hook that runs a command which is not ours.
func foreign(h *corev1.LifecycleHandler) bool {
	return h != nil && h.Exec != nil && !slices.Equal(h.Exec.Command, drainCommand())
}

func drainCommand() []string { return []string{"hauberk-proxy", "drain"} }

// trustEnv is the part of the sidecar's environment that says whom it obeys.
func trustEnv(cfg Config) map[string]string {
	return map[string]string{
		"HAUBERK_CONTROL_ADDRESS": cfg.ControlAddress,
		"HAUBERK_TRUST_DOMAIN":    cfg.TrustDomain,
		"HAUBERK_TRUST_BUNDLE":    cfg.TrustBundle,
		"HAUBERK_TOKEN_FILE":      tokenDir + "/" + tokenFile,
	}
}
