package patch

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/hauberk-mesh/hauberk/internal/names"
)

// maxDrainSeconds keeps a typing error from holding a node's drain for days.
const maxDrainSeconds = 3600

// settings are the annotations of one pod, over the configuration's defaults.
type settings struct {
	logLevel            string
	drainSeconds        int
	excludeInboundPorts string // canonical: ascending, commas, no spaces
	resources           corev1.ResourceRequirements
	warnings            []string
}

// settingsOf parses every annotation that is ours, the ones that only the node
// agent uses too: a pod with one that cannot be read must not start.
func settingsOf(pod *corev1.Pod, cfg Config) (settings, error) {
	s := settings{logLevel: cfg.LogLevel, drainSeconds: cfg.DrainSeconds}
	get := func(key string) (string, bool) {
		v, ok := pod.Annotations[key]
		return strings.TrimSpace(v), ok
	}
	bad := func(key, mend string, err error) error {
		return refuse("metadata.annotations["+key+"]", mend, "%v", err)
	}

	included := map[uint16]bool{}
	for _, key := range []string{names.AnnotationIncludeInboundPorts, names.AnnotationExcludeInboundPorts, names.AnnotationExcludeOutboundPorts} {
		v, ok := get(key)
		if !ok || (key == names.AnnotationIncludeInboundPorts && v == "*") {
			continue
		}
		ports, err := parsePorts(v)
		if err != nil {
			return s, bad(key, `list ports as in "8080,9090"`, err)
		}
		switch key {
		case names.AnnotationIncludeInboundPorts:
			for _, p := range ports {
				included[p] = true
			}
		case names.AnnotationExcludeInboundPorts:
			for _, p := range ports {
				if included[p] {
					return s, bad(key, "remove it from one of them", fmt.Errorf("port %d is also in %s", p, names.AnnotationIncludeInboundPorts))
				}
			}
			s.excludeInboundPorts = joinPorts(ports)
		}
	}
	if v, ok := get(names.AnnotationExcludeOutboundCIDRs); ok {
		if err := checkCIDRs(v); err != nil {
			return s, bad(names.AnnotationExcludeOutboundCIDRs, `list prefixes as in "10.1.0.0/16,fd00::/64"`, err)
		}
	}
	if v, ok := get(names.AnnotationLogLevel); ok {
		if err := checkLogLevel(v); err != nil {
			return s, bad(names.AnnotationLogLevel, "use one of these", err)
		}
		s.logLevel = v
	}
	if v, ok := get(names.AnnotationDrainSeconds); ok {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > maxDrainSeconds {
			return s, bad(names.AnnotationDrainSeconds, fmt.Sprintf("use a whole number from 0 to %d", maxDrainSeconds), fmt.Errorf("%q is no number of seconds", v))
		}
		s.drainSeconds = n
	}
	if grace := pod.Spec.TerminationGracePeriodSeconds; grace != nil && int64(s.drainSeconds) > *grace {
		if _, ok := get(names.AnnotationDrainSeconds); ok {
			s.warnings = append(s.warnings, fmt.Sprintf("hauberk: draining may take %ds, but the pod is killed after terminationGracePeriodSeconds: %d", s.drainSeconds, *grace))
		}
	}

	cpu, cpuLimit, err := parseAmount(pod.Annotations, names.AnnotationProxyCPU, cfg.CPURequest, resource.Quantity{})
	if err != nil {
		return s, bad(names.AnnotationProxyCPU, `write a request, or request/limit, as in "50m" or "50m/1"`, err)
	}
	mem, memLimit, err := parseAmount(pod.Annotations, names.AnnotationProxyMemory, cfg.MemoryRequest, cfg.MemoryLimit)
	if err != nil {
		return s, bad(names.AnnotationProxyMemory, `write a request, or request/limit, as in "64Mi" or "64Mi/512Mi"`, err)
	}
	s.resources = corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: cpu, corev1.ResourceMemory: mem},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: memLimit},
	}
	if !cpuLimit.IsZero() {
		s.resources.Limits[corev1.ResourceCPU] = cpuLimit
	}

	for _, key := range sortedKeys(pod.Annotations) {
		if strings.HasPrefix(key, "hauberk.dev/") && !known(key) {
			s.warnings = append(s.warnings, fmt.Sprintf("hauberk: annotation %s is not known and has no effect", key))
		}
	}
	return s, nil
}

// known tells whether an annotation of ours exists.
func known(key string) bool {
	switch key {
	case names.AnnotationStatus, names.AnnotationExcludeInboundPorts, names.AnnotationExcludeOutboundPorts,
		names.AnnotationExcludeOutboundCIDRs, names.AnnotationIncludeInboundPorts, names.AnnotationProxyCPU,
		names.AnnotationProxyMemory, names.AnnotationLogLevel, names.AnnotationDrainSeconds:
		return true
	}
	return false
}

func parsePorts(list string) ([]uint16, error) {
	if list == "" {
		return nil, nil
	}
	var ports []uint16
	for item := range strings.SplitSeq(list, ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(item), 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is no port (1 to 65535)", item)
		}
		ports = append(ports, uint16(n))
	}
	slices.Sort(ports)
	return slices.Compact(ports), nil
}

func joinPorts(ports []uint16) string {
	var items []string
	for _, p := range ports {
		items = append(items, strconv.Itoa(int(p)))
	}
	return strings.Join(items, ",")
}

func checkCIDRs(list string) error {
	if list == "" {
		return nil
	}
	for item := range strings.SplitSeq(list, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(item))
		if err != nil {
			return fmt.Errorf("%q is no address prefix", item)
		}
		if p != p.Masked() {
			return fmt.Errorf("%s has bits set beyond its length: did you mean %s", p, p.Masked())
		}
	}
	return nil
}

func checkLogLevel(level string) error {
	switch level {
	case "debug", "info", "warn", "error":
		return nil
	}
	return fmt.Errorf("%q is not debug, info, warn or error", level)
}

// parseAmount reads "request" or "request/limit". A request above the default
// limit raises the limit with it.
func parseAmount(annotations map[string]string, key string, request, limit resource.Quantity) (resource.Quantity, resource.Quantity, error) {
	value, ok := annotations[key]
	if !ok {
		return request, limit, nil
	}
	first, second, both := strings.Cut(value, "/")
	request, err := parseQuantity(first)
	if err != nil {
		return request, limit, err
	}
	if both {
		if limit, err = parseQuantity(second); err != nil {
			return request, limit, err
		}
		if limit.Cmp(request) < 0 {
			return request, limit, fmt.Errorf("limit %s is less than request %s", &limit, &request)
		}
	} else if !limit.IsZero() && limit.Cmp(request) < 0 {
		limit = request.DeepCopy()
	}
	return request, limit, nil
}

func parseQuantity(s string) (resource.Quantity, error) {
	q, err := resource.ParseQuantity(strings.TrimSpace(s))
	if err != nil || q.Sign() <= 0 {
		return resource.Quantity{}, fmt.Errorf("%q is no positive quantity", s)
	}
	return q, nil
}
