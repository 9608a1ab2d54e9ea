// SPDX-License-Identifier: MIT
pragma solidity 0.8.30;

import {FlowTree} from "./FlowTree.sol";
import {Roles} from "./Roles.sol";

struct SubmissionNode {
    bytes32 root;
    uint256 height;
}

struct SubmissionData {
    uint256 length; // of the file, in bytes
    bytes tags;
    SubmissionNode[] nodes;
}

struct Submission {
    SubmissionData data;
    address submitter;
}

struct MineContext {
    uint256 epoch;
    uint256 mineStart;
    bytes32 flowRoot;
    uint256 flowLength;
    bytes32 blockDigest;
    bytes32 digest;
}

struct EpochRange {
    uint128 start;
    uint128 end;
}

struct EpochRangeWithContextDigest {
    uint128 start;
    uint128 end;
    bytes32 digest;
}

interface IDigestHistory {
    function available(uint256 index) external view returns (bool);
}

interface IMarket {
    function pricePerSector() external view returns (uint256);
    function chargeFee(uint256 beforeLength, uint256 uploadSectors, uint256 paddingSectors) external;
}

/// Takes files' Merkle trees in a fixed order, for a price per 256-byte sector.
contract FixedPriceFlow is Roles {
    using FlowTree for FlowTree.Tree;

    bytes32 public constant PAUSER_ROLE = keccak256("PAUSER_ROLE");
    uint256 private constant SEGMENT_HEIGHT = 10;
    uint256 private constant MAX_HEIGHT = 64;
    uint256 private constant MAX_DEPTH = 4;

    uint256 public immutable deployDelay;

    bool public paused;
    uint256 public blocksPerEpoch;
    uint256 public firstBlock;
    uint256 public epoch;
    uint256 public epochStartPosition;
    uint256 public submissionIndex;
    address payable public market;
    IDigestHistory public rootHistory;

    FlowTree.Tree private _tree;
    MineContext private _context;
    mapping(uint256 txSeq => bytes32) private _roots;
    mapping(bytes32 digest => EpochRange) private _ranges;
    EpochRangeWithContextDigest[] private _history;

    event NewEpoch(
        address indexed sender,
        uint256 indexed index,
        bytes32 startMerkleRoot,
        uint256 submissionIndex,
        uint256 flowLength,
        bytes32 context
    );
    event Paused(address account);
    event Submit(
        address indexed sender,
        bytes32 indexed identity,
        uint256 submissionIndex,
        uint256 startPos,
        uint256 length,
        SubmissionData submission
    );
    event Unpaused(address account);

    error EnforcedPause();
    error ExpectedPause();
    error InvalidSubmission();
    error NotEnoughFee(uint256 price, uint256 amount, uint256 paid);

    constructor(uint256 deployDelay_) {
        deployDelay = deployDelay_;
        _lockForever();
    }

    modifier open() {
        if (paused) revert EnforcedPause();
        require(block.number >= firstBlock, "Contract has not launched.");
        _;
    }

    function initialize(address market_, uint256 blocksPerEpoch_) external once {
        _grant(DEFAULT_ADMIN_ROLE, msg.sender);
        _grant(PAUSER_ROLE, msg.sender);
        market = payable(market_);
        blocksPerEpoch = blocksPerEpoch_;
        firstBlock = block.number + deployDelay;
        _tree.start();
        _setContext();
    }

    // --- submissions ---

    function submit(Submission memory submission)
        external
        payable
        open
        returns (uint256 index, bytes32 digest, uint256 startIndex, uint256 length)
    {
        return _submit(submission);
    }

    function batchSubmit(Submission[] memory submissions)
        external
        payable
        open
        returns (
            uint256[] memory indexes,
            bytes32[] memory digests,
            uint256[] memory startIndexes,
            uint256[] memory lengths
        )
    {
        uint256 count = submissions.length;
        (indexes, digests) = (new uint256[](count), new bytes32[](count));
        (startIndexes, lengths) = (new uint256[](count), new uint256[](count));
        for (uint256 i = 0; i < count; ++i) {
            (indexes[i], digests[i], startIndexes[i], lengths[i]) = _submit(submissions[i]);
        }
    }

    function numSubmissions() external view returns (uint256) {
        return submissionIndex;
    }

    function tree() external view returns (uint256 currentLength, uint256 unstagedHeight) {
        return (_tree.length, 1);
    }

    function computeFlowRoot() external returns (bytes32) {
        return _tree.root();
    }

    function getFlowRootByTxSeq(uint256 txSeq) external view returns (bytes32) {
        return _roots[txSeq];
    }

    function _submit(Submission memory submission)
        private
        returns (uint256 index, bytes32 digest, uint256 startIndex, uint256 length)
    {
        SubmissionNode[] memory nodes = submission.data.nodes;
        require(submission.submitter != address(0) && _isValid(submission.data), "Invalid submission");
        for (uint256 i = 0; i < nodes.length; ++i) length += 1 << nodes[i].height;
        uint256 before = _tree.length;
        _pay(length);
        startIndex = _place(nodes, length);
        IMarket(market).chargeFee(before, length, _tree.length - before - length);
        digest = _digest(nodes);
        index = submissionIndex++;
        _roots[index] = _tree.root();
        emit Submit(submission.submitter, digest, index, startIndex, length, submission.data);
    }

    /// What the heights can hold, and no more than the last part of it empty.
    function _isValid(SubmissionData memory data) private pure returns (bool) {
        SubmissionNode[] memory nodes = data.nodes;
        uint256 count = nodes.length;
        if (count == 0 || nodes[0].height >= MAX_HEIGHT) return false;
        uint256 first = nodes[0].height;
        uint256 capacity = 1 << first;
        for (uint256 i = 1; i < count; ++i) {
            if (nodes[i].height >= nodes[i - 1].height) return false;
            capacity += 1 << nodes[i].height;
        }
        if (first - nodes[count - 1].height >= MAX_DEPTH) return false;
        uint256 needed;
        if (capacity < 16) needed = capacity - 1;
        else if (count == 1) needed = capacity - capacity / 16;
        else needed = capacity - (1 << (first - 3));
        return data.length <= capacity * 256 && data.length > needed * 256;
    }

    /// A file crosses no segment's edge unless it starts on one.
    function _place(SubmissionNode[] memory nodes, uint256 length) private returns (uint256 startIndex) {
        uint256 size = 1 << nodes[0].height;
        uint256 begin = (_tree.length + size - 1) / size * size;
        if (begin % 1024 != 0 && begin / 1024 != (begin + length - 1) / 1024) _tree.align(SEGMENT_HEIGHT);
        for (uint256 i = 0; i < nodes.length; ++i) {
            _tree.align(nodes[i].height);
            if (i == 0) startIndex = _tree.length;
            _tree.add(nodes[i].root, nodes[i].height);
        }
    }

    /// Out of the whole balance: what somebody paid too much pays for the next one.
    function _pay(uint256 sectors) private {
        uint256 price = IMarket(market).pricePerSector();
        uint256 fee = sectors * price;
        uint256 paid = address(this).balance;
        if (paid < fee) revert NotEnoughFee(price, sectors, paid);
        (bool done,) = market.call{value: fee}("");
        require(done, "The market refused the fee");
    }

    function _digest(SubmissionNode[] memory nodes) private pure returns (bytes32) {
        bytes memory roots = new bytes(32 * nodes.length);
        for (uint256 i = 0; i < nodes.length; ++i) {
            bytes32 root = nodes[i].root;
            assembly {
                mstore(add(add(roots, 32), mul(i, 32)), root)
            }
        }
        return keccak256(roots);
    }

    // --- epochs, for miners ---

    function getContext() external view returns (MineContext memory) {
        return _context;
    }

    function makeContext() external {
        _makeContexts(1);
    }

    function makeContextFixedTimes(uint256 cnt) external {
        _makeContexts(cnt);
    }

    function makeContextWithResult() external returns (MineContext memory) {
        _makeContexts(type(uint256).max);
        return _context;
    }

    function queryContextAtPosition(uint128 targetPosition)
        external
        returns (EpochRangeWithContextDigest memory range)
    {
        require(targetPosition < _tree.length, "Queried position exceeds upper bound");
        _makeContexts(type(uint256).max);
        for (uint256 i = _history.length; i > 0; --i) {
            range = _history[i - 1];
            if (range.start <= targetPosition && targetPosition < range.end) return range;
        }
        revert("Can not find proper context");
    }

    function getEpochRange(bytes32 digest) external view returns (EpochRange memory) {
        return _ranges[digest];
    }

    function getEpochRangeHistory(uint256 index) external view returns (EpochRangeWithContextDigest memory) {
        return _history[index];
    }

    /// Begin the epochs that are due, at most so many.
    function _makeContexts(uint256 count) private {
        for (; count > 0 && block.number >= firstBlock; --count) {
            if ((block.number - firstBlock) / blocksPerEpoch <= epoch) return;
            _makeContext();
        }
    }

    function _makeContext() private {
        uint256 length = _tree.length;
        _context.flowLength = length;
        _context.flowRoot = _tree.root();
        (uint128 begin, uint128 end) = (uint128(epochStartPosition), uint128(length));
        ++epoch;
        epochStartPosition = length;
        _setContext();
        _ranges[_context.digest] = EpochRange(begin, end);
        _history.push(EpochRangeWithContextDigest(begin, end, _context.digest));
        emit NewEpoch(msg.sender, epoch, _context.flowRoot, submissionIndex, length, _context.digest);
    }

    function _setContext() private {
        MineContext storage c = _context;
        c.epoch = epoch;
        c.mineStart = firstBlock + epoch * blocksPerEpoch;
        if (epoch == 0) (c.flowRoot, c.flowLength) = (_tree.root(), _tree.length);
        c.blockDigest = blockhash(block.number - 1);
        c.digest = keccak256(abi.encode(c.epoch, c.mineStart, c.flowRoot, c.flowLength, c.blockDigest));
    }

    // --- administration ---

    function pause() external onlyRole(PAUSER_ROLE) {
        if (paused) revert EnforcedPause();
        paused = true;
        emit Paused(msg.sender);
    }

    function unpause() external onlyRole(PAUSER_ROLE) {
        if (!paused) revert ExpectedPause();
        paused = false;
        emit Unpaused(msg.sender);
    }

    function setParams(uint256 blocksPerEpoch_, uint256 firstBlock_, address rootHistory_)
        external
        onlyRole(DEFAULT_ADMIN_ROLE)
    {
        if (blocksPerEpoch_ != 0) blocksPerEpoch = blocksPerEpoch_;
        if (firstBlock_ != 0) firstBlock = firstBlock_;
        if (rootHistory_ != address(0)) rootHistory = IDigestHistory(rootHistory_);
    }
}
