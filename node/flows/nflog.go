package flows

import (
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The protocol of nfnetlink_log (linux/netfilter/nfnetlink_log.h): numbers are
// big-endian inside of attributes, which netlink itself keeps in the machine's
// order.
const (
	subsystem     = 4 // NFNL_SUBSYS_ULOG
	messagePacket = 0 // NFULNL_MSG_PACKET
	messageConfig = 1 // NFULNL_MSG_CONFIG

	configCommand   = 1 // NFULA_CFG_CMD
	configMode      = 2 // NFULA_CFG_MODE
	configTimeout   = 4 // NFULA_CFG_TIMEOUT, hundredths of a second
	configThreshold = 5 // NFULA_CFG_QTHRESH, packets
	configFlags     = 6 // NFULA_CFG_FLAGS

	commandBind = 1 // NFULNL_CFG_CMD_BIND
	copyPacket  = 2 // NFULNL_COPY_PACKET
	flagSeq     = 1 // NFULNL_CFG_F_SEQ

	attributeTimestamp = 3  // NFULA_TIMESTAMP: seconds and microseconds
	attributePayload   = 9  // NFULA_PAYLOAD
	attributePrefix    = 10 // NFULA_PREFIX, ended by a zero
	attributeSeq       = 12 // NFULA_SEQ

	// headerSize is that of struct nfgenmsg: family, version, group.
	headerSize = 4
)

const (
	// copyBytes is enough for the headers of a packet, IPv6 extensions included.
	copyBytes = 192
	// The kernel gathers packets for so long, or so many, before it sends them.
	gatherTime    = 20 // hundredths of a second
	gatherPackets = 32
	// receiveBuffer holds some thousand packets while the agent is busy.
	receiveBuffer = 1 << 20
)

func messageType(t uint16) netlink.HeaderType { return netlink.HeaderType(subsystem<<8 | t) }

// bind makes the kernel send the packets of a group to c. All settings are in
// one message: once it is bound, packets come between the answers.
func bind(c *netlink.Conn, group uint16) error {
	e := netlink.NewAttributeEncoder()
	e.Bytes(configCommand, []byte{commandBind})
	mode := binary.BigEndian.AppendUint32(nil, copyBytes)
	e.Bytes(configMode, append(mode, copyPacket, 0))
	e.Bytes(configTimeout, binary.BigEndian.AppendUint32(nil, gatherTime))
	e.Bytes(configThreshold, binary.BigEndian.AppendUint32(nil, gatherPackets))
	e.Bytes(configFlags, binary.BigEndian.AppendUint16(nil, flagSeq))
	attributes, err := e.Encode()
	if err != nil {
		return fmt.Errorf("encode the settings: %w", err)
	}
	header := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, group)
	_, err = c.Execute(netlink.Message{
		Header: netlink.Header{Type: messageType(messageConfig), Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(header, attributes...),
	})
	return err
}

// logged is one packet that the kernel told of.
type logged struct {
	time    time.Time // zero when the packet has none
	prefix  string
	payload []byte
	seq     uint32
	hasSeq  bool
}

// parse reads one message; false when it is not a packet.
func parse(m netlink.Message) (logged, bool, error) {
	var l logged
	if m.Header.Type != messageType(messagePacket) {
		return l, false, nil
	}
	if len(m.Data) < headerSize {
		return l, false, fmt.Errorf("a message of %d bytes", len(m.Data))
	}
	d, err := netlink.NewAttributeDecoder(m.Data[headerSize:])
	if err != nil {
		return l, false, err
	}
	for d.Next() {
		b := d.Bytes()
		switch d.Type() {
		case attributeTimestamp:
			if len(b) >= 16 {
				l.time = time.Unix(int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:]))*1000)
			}
		case attributePayload:
			l.payload = b
		case attributePrefix:
			l.prefix, _, _ = strings.Cut(string(b), "\x00")
		case attributeSeq:
			if len(b) >= 4 {
				l.seq, l.hasSeq = binary.BigEndian.Uint32(b), true
			}
		}
	}
	return l, true, d.Err()
}
